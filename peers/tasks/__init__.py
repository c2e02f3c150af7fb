"""The data that devices hold: tasks by name (`data.kind`), examples as tensors, batches and scores."""

from peers.tasks import authors as _authors
from peers.tasks import dataset as _dataset
from peers.tasks import facts as _facts
from peers.tasks import images as _images
from peers.tasks import jsonl as _jsonl
from peers.tasks import tofu as _tofu
from peers.tasks.base import (
    AnyExample,
    Example,
    HasFiles,
    HasUtility,
    ImageExample,
    Message,
    Task,
    TaskFactory,
    make_task,
    question,
    shard_index,
    tasks,
    texts,
)
from peers.tasks.batch import Batch
from peers.tasks.batches import batch_generator, sample_batch
from peers.tasks.encode import Encoded, encode, encoding_notes, end_id, lacks_end, pad_id
from peers.tasks.encode_images import EncodedImages, ImageFormat, encode_images
from peers.tasks.loss import logits_width, mean_loss, predictions
from peers.tasks.score import Score, TokenTable, evaluate, score_examples, score_tokens
from peers.tasks.shared_prefix import PrefixedModel, with_prefix

del _authors, _dataset, _facts, _images, _jsonl, _tofu  # their import registers the tasks

__all__ = [
    "AnyExample",
    "Batch",
    "Encoded",
    "EncodedImages",
    "Example",
    "HasFiles",
    "HasUtility",
    "ImageExample",
    "ImageFormat",
    "Message",
    "PrefixedModel",
    "Score",
    "Task",
    "TaskFactory",
    "TokenTable",
    "batch_generator",
    "encode",
    "encode_images",
    "encoding_notes",
    "end_id",
    "evaluate",
    "lacks_end",
    "logits_width",
    "make_task",
    "mean_loss",
    "pad_id",
    "predictions",
    "question",
    "sample_batch",
    "score_examples",
    "score_tokens",
    "shard_index",
    "tasks",
    "texts",
    "with_prefix",
]
