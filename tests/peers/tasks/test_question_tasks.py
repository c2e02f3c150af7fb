"""The tasks authors, tofu and dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peers.config import DataConfig
from peers.errors import InputError
from peers.tasks import HasUtility, dataset, jsonl, tasks
from peers.tasks.dataset import read_table
from peers.tasks.tofu import PER_AUTHOR

# Keys with values that are not the default, of tasks whose examples are dealt, and of `dataset`.
OF_TABLES = (("held_out", 0.5), ("sizes", {"d0": 3}), ("empty", "listen"), ("columns", {"prompt": "x"}))
NAMED = (("subset", "main"), ("split", "test"), ("columns", {"prompt": "x"}))


def task(kind: str, seed: int = 0, **settings: Any) -> Any:
    return tasks.get(kind)(DataConfig(kind=kind, **settings), seed)


def test_authors_have_questions_paraphrases_and_wrong_answers() -> None:
    authors = task("authors")
    shards = [authors.train_examples(d) for d in ("d0", "d1")]
    assert [len(shard) for shard in shards] == [16, 16] and authors.train_examples("d0") == shards[0]
    names = [{e.label for e in shard} for shard in shards] + [{e.label for e in authors.control_examples()}]
    assert not names[0] & names[1] and not (names[0] | names[1]) & names[2]
    for example, other in zip(shards[0], authors.other_wording("d0"), strict=True):
        assert other.prompt != example.prompt and other.response == example.response
        assert example.label in example.prompt and example.paraphrase != example.response
        assert len({example.paraphrase, *example.perturbed}) == 5
    assert isinstance(authors, HasUtility) and len(authors.utility_examples()["world_facts"]) == 20
    assert task("authors", seed=1).train_examples("d0") != shards[0]


def test_authors_can_be_dealt_by_label() -> None:
    authors = task("authors", partition="by-label", devices=("d0", "d1", "d2"))
    found = [authors.train_examples(d) for d in ("d0", "d1", "d2")]
    assert [len({e.label for e in some}) for some in found] == [2, 2, 2]


def test_too_many_authors_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.authors: 600 is too many; allowed: 1 to 512"):
        task("authors", authors=600)
    with pytest.raises(InputError, match=r"device 'd2'.*no shard 2.*allowed: ids that end in 0 to 1"):
        task("authors", authors=341).train_examples("d2")


def tofu_folder(folder: Path) -> Path:
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3 * PER_AUTHOR)]
    (folder / "full.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"paraphrased_question": "Q3", "paraphrased_answer": "A3", "perturbed_answer": ["x", "y"]}
    (folder / "forget10_perturbed.json").write_text(json.dumps({**rows[3], **more}))
    (folder / "world_facts_perturbed.json").write_text(
        json.dumps({"question": "capital?", "answer": "Lima", "perturbed_answer": ["Rome"]})
    )
    (folder / "holdout10.json").write_text(json.dumps([{"question": "h", "answer": "b"}]))
    return folder


def test_tofu_reads_the_published_files(tmp_path: Path) -> None:
    tofu = task("tofu", path=str(tofu_folder(tmp_path)), authors=1)
    shard = tofu.train_examples("d0")
    assert [e.prompt for e in shard] == [f"q{i}" for i in range(PER_AUTHOR)]
    assert (shard[3].paraphrase, shard[3].perturbed) == ("A3", ("x", "y")) and shard[4].perturbed == ()
    assert [e.prompt for e in tofu.other_wording("d0")] == ["Q3"]
    assert [e.response for e in tofu.control_examples()] == ["b"]
    assert tofu.utility_examples()["world_facts"][0].perturbed == ("Rome",)
    assert tofu.train_examples("d2")[0].prompt == "q40"
    with pytest.raises(InputError, match=r"device 'd3': .*full.json has 3 shards of 20 questions"):
        tofu.train_examples("d3")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not JSON"), ('{"question": "q"}', "object 1 has no question and answer")]
)
def test_tofu_names_the_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "full.json").write_text(text)
    with pytest.raises(InputError, match=rf"full\.json.*{said}"):
        task("tofu", path=str(tmp_path))
    with pytest.raises(InputError, match=r"has no full\.json; allowed"):
        task("tofu", path=str(tmp_path / "nowhere"))


CSV = "q,a,topic,who\nalpha,one,x,d0\nbeta,two,y,d1\ngamma,three,x,d0\ndelta,four,y,d1\n"
COLUMNS = {"prompt": "q", "response": "a", "label": "topic"}


def test_a_csv_is_dealt_by_its_labels(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    made = task(
        "dataset", path=str(tmp_path / "t.csv"), columns=COLUMNS, partition="by-label", devices=("d0", "d1")
    )
    assert [{e.response for e in made.train_examples(d)} for d in ("d0", "d1")] == [
        {"one", "three"},
        {"two", "four"},
    ]


def test_a_column_can_name_the_device(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    made = task("dataset", path=str(tmp_path / "t.csv"), columns={**COLUMNS, "device": "who"})
    assert [e.prompt for e in made.train_examples("d1")] == ["beta", "delta"]
    assert made.train_examples("d1")[0].messages[0].content == "beta"
    assert made.unused(("d0", "d2")) == ["rows of d1"]
    (tmp_path / "t.csv").write_text(CSV.replace("d1", " ", 1))
    with pytest.raises(InputError, match=r"t\.csv, row 2: column 'who' names no device; allowed: "):
        task("dataset", path=str(tmp_path / "t.csv"), columns={**COLUMNS, "device": "who"}).unused(("d0",))


@pytest.mark.parametrize("field", ["prompt", "response", "messages", "label", "device"])
def test_a_column_that_does_not_exist_is_refused(tmp_path: Path, field: str) -> None:
    (tmp_path / "t.csv").write_text(CSV.replace("q,a,", "prompt,response,"))
    columns = {"device": "who", field: "owner"}
    made = task("dataset", path=str(tmp_path / "t.csv"), columns=columns, empty="listen")
    allowed = "allowed: prompt, response, topic, who"
    with pytest.raises(
        InputError, match=rf"data\.columns\.{field}: .*t\.csv has no column 'owner'; {allowed}"
    ):
        made.train_examples("d1")


def test_held_out_rows_of_named_devices_are_control_examples(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    columns = {**COLUMNS, "device": "who"}
    made = task("dataset", path=str(tmp_path / "t.csv"), columns=columns, held_out=0.5)
    trained, held = [e for d in ("d0", "d1") for e in made.train_examples(d)], made.control_examples()
    assert sorted(e.prompt for e in trained + held) == ["alpha", "beta", "delta", "gamma"]
    assert len(trained) == len(held) == 2


@pytest.mark.parametrize(("kind", "files"), [("dataset", False), ("dataset", True), ("jsonl", True)])
@pytest.mark.parametrize("partition", ["own", "iid"])
def test_each_file_is_read_once_for_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, files: bool, partition: str
) -> None:
    devices, path = ("d0", "d1", "d2"), tmp_path if files else tmp_path / "t.csv"
    if files:
        for device in devices:
            (tmp_path / f"{device}.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    else:
        path.write_text(CSV)
    read: list[Path] = []

    def counted(of: Any) -> Any:
        def reads(path: Path) -> Any:
            read.append(path)
            return of(path)

        return reads

    monkeypatch.setattr(dataset, "read_table", counted(read_table))
    monkeypatch.setattr(jsonl, "read_examples", counted(jsonl.read_examples))
    settings: dict[str, Any] = {"path": str(path), "partition": partition, "held_out": 0.1}
    settings |= {} if partition == "own" else {"devices": devices}
    settings |= {} if files else {"columns": {**COLUMNS, "device": "who"}, "empty": "listen"}
    made = task(kind, **settings)
    for device in (*devices, "d0"):
        made.train_examples(device)
    made.control_examples()
    assert len(read) == len(set(read)) == (len(devices) if files else 1)


def test_a_folder_of_tables_has_a_file_for_each_device(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "d0.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    made = task("dataset", path=str(tmp_path))
    assert made.train_examples("d0")[0].response == "yes"
    with pytest.raises(InputError, match=r"must have one file for d1; allowed: d1\.csv or d1\.jsonl"):
        made.train_examples("d1")


def test_a_parquet_file_is_read_with_its_chats(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": chat, "label": number} for number in (0, 1, 0, 1)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    made = task("dataset", path=path, partition="by-label", devices=("d0", "d1"))
    found = [made.train_examples(d) for d in ("d0", "d1")]
    assert [{e.label for e in some} for some in found] == [{"0"}, {"1"}]
    assert [m.content for m in found[0][0].messages] == ["hi"] and found[0][0].response == "yes"
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"data\.path: '.*t\.parquet' cannot be loaded"):
        task("dataset", path=path, partition="iid", devices=("d0",)).train_examples("d0")


def test_a_named_data_set_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "t.csv").write_text(CSV)
    datasets.load_dataset("csv", data_files=str(tmp_path / "t.csv"), cache_dir=str(tmp_path / "made"))
    # the folder that `load_dataset("someone/pairs", "main")` leaves, with a file for each split
    made = next((tmp_path / "made").glob("csv/*/*/*/"))
    kept = tmp_path / "cache" / "someone___pairs" / "main" / "0.0.0" / "hash"
    shutil.copytree(made, kept)
    (kept / "csv-train.arrow").rename(kept / "pairs-train.arrow")
    info = json.loads((kept / "dataset_info.json").read_text())
    info.update(config_name="main", dataset_name="pairs", builder_name="csv")
    (kept / "dataset_info.json").write_text(json.dumps(info))

    settings: dict[str, Any] = {"path": "someone/pairs", "columns": {**COLUMNS, "device": "who"}}
    table = task("dataset", **{**settings, "subset": "main"})
    assert [e.prompt for e in table.train_examples("d1")] == ["beta", "delta"]
    for wrong in ({"subset": "other"}, {"split": "test"}, {"path": "someone/none"}):
        with pytest.raises(InputError, match=r"data\.path: .* cannot be loaded .*allowed: "):
            task("dataset", **{**settings, **wrong}).train_examples("d0")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"data\.partition: 'own' with one table"),
        (
            {"partition": "iid", "devices": ("d0",)},
            r"t\.csv, row 1: column 'prompt' has no text.*q, a, topic",
        ),
        ({"path": None}, r"data\.path: is not set"),
    ],
)
def test_settings_that_do_not_fit_a_table(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    with pytest.raises(InputError, match=said):
        task("dataset", **{"path": str(tmp_path / "t.csv"), **settings}).train_examples("d0")


def test_a_row_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "d0.jsonl").write_text('{"prompt": "a", "response": "b"}\n[1, 2]\n')
    with pytest.raises(InputError, match=r"d0\.jsonl, row 2: is no object; allowed: one object"):
        task("dataset", path=str(tmp_path)).train_examples("d0")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *((kind, key, value) for kind in ("facts", "images") for key, value in OF_TABLES),
        *(
            (kind, key, value)
            for kind in ("facts", "images", "authors", "tofu", "jsonl")
            for key, value in NAMED
        ),
        *((kind, "path", "/some/folder") for kind in ("facts", "authors")),
        *((kind, "overlap", 0.5) for kind in ("authors", "tofu", "dataset")),
    ],
)
def test_keys_that_a_task_would_ignore_are_refused(kind: str, key: str, value: Any) -> None:
    with pytest.raises(
        InputError, match=rf"data\.{key}: .* does not apply to data\.kind '{kind}'; allowed: "
    ):
        task(kind, **{"path": "." if kind in ("jsonl", "tofu", "dataset") else None, key: value})
