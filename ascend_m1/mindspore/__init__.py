"""Baichuan-M1 on MindSpore: the same checkpoint as static graphs, which compile for Ascend's CANN and run on a CPU.

    weights   the checkpoint's tensors, as NumPy arrays
    state     how large the tensors of the state are
    layers    a layer as cells: prefill of a chunk, decode of a token, rings of keys and values
    model     the model as two cells, and their compilation
    runner    prompts in chunks, tokens one by one, text as it comes; for compiled cells and for MindIR alike
    mindir    both graphs as MindIR files, and back without the model's code
    device    which device and dtype

Nothing here, and nothing that it imports, knows torch.
"""
