"""What vllm-ascend uses of pyACL, CANN's own Python module, over the host NPU."""
