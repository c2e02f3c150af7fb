"""The subcommands of `unweft`, one file each."""
