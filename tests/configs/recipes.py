"""A recipe that is valid, to be made invalid by tests."""

VALID = """\
name: demo
download:
  model: file:///models/base
  data:
    source: file:///data
    train: train.jsonl
finetune:
  r: 8
optimize:
  variants:
    - kind: gguf
      quantization: Q8_0
weigh:
  engines:
    - kind: llama_cpp
deploy:
  target:
    kind: local
    port: 8300
"""
