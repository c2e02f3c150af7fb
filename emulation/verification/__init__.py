"""Checks the receipts of deletions, and whether a file still holds a deleted block (docs/receipts.md)."""
