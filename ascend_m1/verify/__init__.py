"""Whether every operator that the NPU path calls is accepted, right and capturable, product by product.

``cases.py`` says what is checked, as data; ``probe.py`` runs it in a process of its own for each product, on the device
or, where there is none, on the host NPU; ``decode.py`` captures whole decode steps and counts their launches and bytes;
``report.py`` prints what came out. Nothing is imported here: ``run.py`` starts it.
"""
