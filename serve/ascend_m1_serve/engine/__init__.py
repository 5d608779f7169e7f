"""The built-in engine: requests, blocks, what to run in a step, running it, choosing tokens.

Read in this order: ``request``, ``block_pool``, ``scheduler`` (numbers only); ``store``, ``runner``, ``sampler``
(tensors); ``core`` puts them together, ``size`` tells what they take, ``service`` runs them in a thread behind the
``Engine`` protocol.
"""
