"""The names a person can choose from, each spelled once.

Options offer these names, and the rooms that act on them use the same constants: as keys of a table, such as
`biencoder.model.pooling.POOLINGS`, or in a comparison. ``auto`` is never a key.
"""

AUTO = "auto"

POOLINGS = CLS, MEAN, LAST = "cls", "mean", "last"
ATTENTIONS = CAUSAL, BIDIRECTIONAL = "causal", "bidirectional"
DEVICES = CPU, CUDA = "cpu", "cuda"
HEADS = DENSE, SPARSE, MULTI = "dense", "sparse", "multi"
COMBINED = f"{DENSE},{SPARSE}", f"{DENSE},{MULTI}", f"{DENSE},{SPARSE},{MULTI}"  # in one model, as BGE-M3
PRECISIONS = FP32, BF16, FP16 = "fp32", "bf16", "fp16"

DISTILLATIONS = KL, MARGIN_MSE = "kl", "margin-mse"
SPARSITY_NORMS = FLOPS, L1 = "flops", "l1"
SCHEDULES = LINEAR, COSINE = "linear", "cosine"
MIXES = SIZE, SQRT, EQUAL = "size", "sqrt", "equal"
LORA_SAVES = MERGED, ADAPTER = "merged", "adapter"
TRACKERS = TENSORBOARD, WANDB, TRACKIO, MLFLOW = "tensorboard", "wandb", "trackio", "mlflow"
SHARDS = ON, OFF = "on", "off"
NEVER = "never"
RESUMES = (AUTO, NEVER)
ON_BAD_ROW = ON_NONFINITE = STOP, SKIP = "stop", "skip"

EXISTING = KEEP, REPLACE = "keep", "replace"
SELECTIONS = TOP, RANDOM = "top", "random"
PAIR_METHODS = TITLE, FIRST_SENTENCE, SPANS, HEADINGS = "title", "first-sentence", "spans", "headings"
VECTORS = FLOAT32, FLOAT16, INT8, BINARY, UBINARY = "float32", "float16", "int8", "binary", "ubinary"
TEXT_KINDS = QUERY, PASSAGE, PLAIN = "query", "passage", "plain"
FORMATS = SENTENCE_TRANSFORMERS, ONNX, OPENVINO = "sentence-transformers", "onnx", "openvino"

# Of a loss over cosines. They differ by at most 2, so above this temperature the logits are nearly equal.
HIGHEST_TEMPERATURE = 0.5
