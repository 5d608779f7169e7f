"""Keys of openMind and of older transformers that mean nothing here, that have another name, or one possible value.

openMind 1.0.0 takes its own arguments and all of transformers 4.45's Seq2SeqTrainingArguments.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

_EVALUATION = "nothing is evaluated while training"
# Whatever their value is, and why.
WITHOUT_EFFECT = {
    "model_group": "there is one",
    "trust_remote_code": "no code of a checkpoint is run",
    "model_revision": "checkpoints are local folders",
    "token": "checkpoints are local folders",
    "use_fast_tokenizer": "there is one tokenizer",
    "split_special_tokens": "the checkpoint's tokenizer decides",
    "per_shard_size": "`ascend-m1 export` decides",
    "split": "each data set's entry names its own, as in openMind",
    "subset_name": "data sets are local files",
    "preprocessing_batch_size": "rows are read one by one",
    "preprocessing_num_workers": "rows are read one by one",
    "max_length": "batches are padded to their longest row",
    "reserved_label_len": "a row is cut at its end",
    "ignore_pad_token_for_loss": "padding is never learnt",
    "remove_unused_columns": "rows hold nothing but what the model takes",
    "include_tokens_per_second": "the log has them always",
    "logging_dir": "reporters have settings of their own",
    "ray_scope": "hyperparameters are not searched",
    "fp16_opt_level": "there is no apex",
    **dict.fromkeys(("predict_with_generate", "generation_max_length", "generation_num_beams"), _EVALUATION),
    **dict.fromkeys(("generation_config", "sortish_sampler", "jit_mode_eval"), _EVALUATION),
    **dict.fromkeys(("use_legacy_prediction_loop", "include_inputs_for_metrics"), _EVALUATION),
}
_GONE = "transformers 5 has it no more: leave it out"
_ACCELERATOR = "say it in accelerator_config"
_FSDP = "say it in fsdp_config"
# The values that these may have beside null, and what to do instead.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    # The Trainer would shift the labels of a model that it knows by name only, and each token would learn itself.
    "label_smoothing_factor": ((0,), "the loss is made in chunks, without smoothing: leave it out"),
    "eval_strategy": (("no",), f"{_EVALUATION}: leave it out, and ask the result"),
    **dict.fromkeys(("do_eval", "do_predict", "eval_on_start"), ((False,), f"{_EVALUATION}: leave it out")),
    "load_best_model_at_end": ((False,), f"{_EVALUATION}: leave it out"),
    "use_liger_kernel": ((False,), "it has nothing for this model: leave it out"),
    "resize_vocab": ((False,), "the vocabulary stays as it is: leave it out"),
    "new_special_tokens": ((), "the vocabulary stays as it is: leave it out"),
    "save_safetensors": ((True,), "weights are written as safetensors: leave it out"),
    "adafactor": ((False,), "say optim: adafactor"),
    "group_by_length": ((False,), "say train_sampling_strategy: group_by_length"),
    "half_precision_backend": (("auto", "cuda_amp", "cpu_amp"), _GONE),
    "fp16_backend": (("auto", "cuda_amp", "cpu_amp"), _GONE),
    **dict.fromkeys(("use_ipex", "use_mps_device", "tpu_metrics_debug"), ((False,), _GONE)),
    **dict.fromkeys(("tpu_num_cores", "push_to_hub_organization"), ((), _GONE)),
    "torchdynamo": ((), "say torch_compile_backend"),
    "past_index": ((-1,), _GONE),
    "mp_parameters": (("",), _GONE),
    "dispatch_batches": ((), _ACCELERATOR),
    "split_batches": ((False,), _ACCELERATOR),
    "fsdp_min_num_params": ((0,), _FSDP),
    "fsdp_transformer_layer_cls_to_wrap": ((), _FSDP),
}
# transformers renamed the field within the versions supported here.
_NAMES = ("gradient_checkpointing", "activation_checkpointing")
_OLD, CHECKPOINTING = _NAMES if _NAMES[1] in {f.name for f in dataclasses.fields(TrainingArguments)} else _NAMES[::-1]
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    _OLD: CHECKPOINTING,
    f"{_OLD}_kwargs": f"{CHECKPOINTING}_kwargs",
}
