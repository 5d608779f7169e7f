"""The inference service's package. It holds nothing yet: generation runs through ``ascend_m1``."""
