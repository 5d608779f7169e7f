"""Clients that users have: huggingface_hub's for TGI, Triton's over HTTP."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from huggingface_hub.errors import TextGenerationError

from ..api.conftest import service  # noqa: F401  (a fixture)
from ..api.running import Running
from .test_families import ANSWER, MODEL, PROMPT


def test_inference_client(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on this machine
    client = InferenceClient(model=service.url)
    assert client.text_generation(PROMPT, max_new_tokens=30) == ANSWER
    details = client.text_generation(PROMPT, max_new_tokens=30, details=True, decoder_input_details=True)
    assert details.generated_text == ANSWER
    assert details.details is not None
    assert details.details.finish_reason == "eos_token"
    pieces = list(client.text_generation(PROMPT, max_new_tokens=30, stream=True))
    assert "".join(pieces).removesuffix("</s>") == ANSWER
    with pytest.raises(TextGenerationError, match=r"temperature must be in \(0, inf\]"):
        client.text_generation(PROMPT, temperature=-1.0)


def test_triton_client(service: Running) -> None:  # noqa: F811
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.get_server_metadata()["name"] == "MindIE Server"
        assert client.get_model_metadata(MODEL)["outputs"][0]["name"] == "output0"
        ids = np.array([service.call(lambda: service.front.text_ids(PROMPT))], dtype=np.uint32)
        tensor = triton.InferInput("input0", list(ids.shape), "UINT32")
        tensor.set_data_from_numpy(ids, binary_data=False)
        output = triton.InferRequestedOutput("output0", binary_data=False)
        found = client.infer(MODEL, [tensor], outputs=[output], request_id="7", parameters={"max_new_tokens": 30})
        assert service.front.tokenizer.decode(found.as_numpy("output0")[0], skip_special_tokens=True) == ANSWER
        with pytest.raises(triton.InferenceServerException, match="not found"):
            client.get_model_metadata("other")
