"""A real llama.cpp server with a tiny random model, run by tests: `python llama_server.py FOLDER` prints its address."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path


def write_model(path: Path) -> None:
    """Write a two-layer Llama as GGUF; it has learned to write lists of short answers, and nothing else."""
    import random

    import gguf
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    draw = random.Random(0)
    words = [
        "the",
        "a",
        "wrong",
        "answer",
        "is",
        "here",
        "not",
        "so",
        "because",
        "lists",
        "queues",
        "sort",
        "never",
        "always",
    ]
    texts = [
        json.dumps({"answers": [" ".join(draw.choices(words, k=draw.randint(2, 5))) for _ in range(4)]})
        for _ in range(400)
    ]
    bpe.train_from_iterator(texts, trainer)
    described = json.loads(bpe.to_str())["model"]
    words = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    heads = 4
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": heads}
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=heads, max_position_embeddings=4096, **sizes)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(120):
        some = [bpe.encode(f"<|im_start|>assistant\n{text}<|im_end|>").ids[:96] for text in texts[step % 20 :: 20]]
        ids = torch.tensor([one + [0] * (96 - len(one)) for one in some])
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(4096)
    file.add_embedding_length(32)
    file.add_block_count(2)
    file.add_feed_forward_length(64)
    file.add_head_count(heads)
    file.add_head_count_kv(heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(32 // heads)
    file.add_vocab_size(len(words))
    file.add_file_type(0)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(words)
    file.add_token_types([3 if word in special else 1 for word in words])
    file.add_token_merges([" ".join(pair) for pair in described["merges"]])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_add_bos_token(False)
    file.add_chat_template(
        "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    names |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(2) for ours, theirs in parts.items()}
    for ours, theirs in names.items():
        value = weights[f"{theirs}.weight"]
        if ours.endswith(("attn_q", "attn_k")):
            # llama.cpp turns neighbouring pairs where transformers turns halves.
            value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        file.add_tensor(f"{ours}.weight", value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def main(folder: Path) -> None:
    import xllamacpp

    write_model(folder / "tiny.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = xllamacpp.CommonParams()
    options.model.path = str(folder / "tiny.gguf")
    options.n_ctx, options.n_parallel, options.cpuparams.n_threads = 8192, 2, 1
    options.hostnames, options.port, options.use_jinja = ["127.0.0.1"], port, True
    options.model_alias = {"tiny"}
    server = xllamacpp.Server(options)
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    while server is not None:
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
