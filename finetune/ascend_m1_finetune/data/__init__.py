"""From files of rows to tokenised documents: which files, their rows, the rows' forms, the checkpoint's chat format."""

from .dataset import Padded, stacked, training_data

__all__ = ["Padded", "stacked", "training_data"]
