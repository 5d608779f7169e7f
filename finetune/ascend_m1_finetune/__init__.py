"""Fine-tuning of Baichuan-M1: the published learning-rate schedule and packed training rows."""

from .packing import Document, PackedRows, document, pack_documents, pad_documents
from .schedule import wsd_lambda_lr, wsd_multiplier

__all__ = ["Document", "PackedRows", "document", "pack_documents", "pad_documents", "wsd_lambda_lr", "wsd_multiplier"]
