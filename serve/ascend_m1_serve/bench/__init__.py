"""``ascend-m1 bench serve``: requests at a chosen rate to an OpenAI-compatible server, and what they took."""
