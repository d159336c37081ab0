"""What a model's embeddings are worth without labels: STS-B, and retrieval on SQuAD."""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import autodistill_jax as ad
from autodistill_jax import metrics
from autodistill_jax.data import glue
from autodistill_jax.interop.huggingface import Teacher

QUESTIONS = 2000
_TIMED_RUNS = 30


def read_sets(data: Path) -> dict[str, list]:
    """The texts: STS-B's sides, (pairs, scores), and SQuAD's paragraphs and questions,
    each question with the number of its paragraph."""
    task = glue.load_glue_task("stsb", str(data / "glue"))
    documents, questions = [], []
    for article in json.loads((data / "squad" / "dev-v1.1.json").read_text())["data"]:
        for paragraph in article["paragraphs"]:
            questions += [(q["question"], len(documents)) for q in paragraph["qas"]]
            documents.append(paragraph["context"])
    rng = np.random.default_rng(0)
    count = min(QUESTIONS, len(questions))
    picked = rng.choice(len(questions), count, replace=False)
    return {
        "dev": task.dev,
        "test": task.extra_dev["test"],
        "documents": documents,
        "questions": [questions[i] for i in picked],
    }


def embedder(model: Teacher) -> Callable[[list[str]], np.ndarray]:
    """(texts) -> their embeddings by a network."""
    return functools.partial(ad.embed, model, max_seq_length=256)


def scores(
    embed_fn: Callable[[list[str]], np.ndarray],
    sets: Mapping[str, list],
    teacher_documents: np.ndarray,
    documents: np.ndarray | None = None,
) -> dict[str, float]:
    """STS-B and retrieval by one model's embeddings, without any fine-tuning; those of
    the paragraphs may be given."""
    result = {}
    for side in ("dev", "test"):
        pairs, labels = sets[side]
        first, second = (embed_fn([pair[i] for pair in pairs]) for i in (0, 1))
        result[side] = metrics.spearman(labels, (first * second).sum(axis=1))
    if documents is None:
        documents = embed_fn(sets["documents"])
    questions = embed_fn([question for question, _ in sets["questions"]])
    numbers = np.asarray([number for _, number in sets["questions"]])
    result |= retrieval(questions, documents, numbers)
    if questions.shape[1] == teacher_documents.shape[1]:
        aligned = retrieval(questions, teacher_documents, numbers)
        result |= {f"{name}_aligned": value for name, value in aligned.items()}
    return {name: float(value) for name, value in result.items()}


def retrieval(
    questions: np.ndarray, documents: np.ndarray, numbers: np.ndarray
) -> dict[str, float]:
    """Mean reciprocal rank and recall among the first ten, of unit embeddings."""
    similarities = questions @ documents.T
    of_answer = similarities[np.arange(len(numbers)), numbers]
    ranks = (similarities > of_answer[:, None]).sum(axis=1)
    reciprocal = np.where(ranks < 10, 1 / (ranks + 1), 0.0)
    return {"mrr": reciprocal.mean(), "recall": (ranks < 10).mean()}


def paired_differences(
    of_students: list[dict[str, float]], of_baseline: list[dict[str, float]]
) -> dict[str, float]:
    """The student's figures less a baseline's, of the same seeds: mean and deviation."""
    return mean_and_deviation(
        [
            {name: student[name] - baseline[name] for name in ("dev", "test", "mrr")}
            for student, baseline in zip(of_students, of_baseline)
        ]
    )


def mean_and_deviation(results: list[dict]) -> dict[str, float]:
    """The mean of each figure over the seeds; of several its deviation, `<name>_sd`."""
    figures = {}
    for name in results[0]:
        values = [result[name] for result in results]
        figures[name] = float(np.mean(values))
        if len(values) > 1:
            figures[f"{name}_sd"] = float(np.std(values, ddof=1))
    return figures


def int8_figures(
    teacher: Teacher, sets: Mapping[str, list], teacher_documents: np.ndarray
) -> dict[str, float]:
    """The teacher in torch, its products in int8: scores, and the latency of one text of
    128 tokens beside its latency in float32, by the clock."""
    import torch
    import transformers
    from torch.ao.quantization import quantize_dynamic

    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher.folder)
    model = transformers.AutoModel.from_pretrained(teacher.folder).eval()
    quantized = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors = np.zeros((len(texts), teacher.arch.hidden), np.float32)
        for start in range(0, len(texts), 64):
            places = order[start : start + 64]
            rows = tokenizer(
                [texts[i] for i in places],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = quantized(**rows).last_hidden_state
            mask = rows["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[places] = torch.nn.functional.normalize(mean).numpy()
        return vectors

    @torch.inference_mode()
    def milliseconds(network: Any) -> float:
        ids, seconds = torch.ones((1, 128), dtype=torch.long), []
        for _ in range(_TIMED_RUNS):
            start = time.perf_counter()
            network(input_ids=ids, attention_mask=ids)
            seconds.append(time.perf_counter() - start)
        return 1e3 * float(np.median(seconds))

    latencies = {
        "latency_ms": milliseconds(quantized),
        "float32_latency_ms": milliseconds(model),
    }
    return scores(embed, sets, teacher_documents) | latencies
