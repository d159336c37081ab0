"""Made-up questions that several tests ask, and a file of them in SQuAD's form."""

import json

import numpy as np

from autodistill_jax.data.squad import Question


def asked(name, context, question, *answers):
    starts = tuple(context.find(answer) for answer in answers)
    return Question(name, question, context, answers, starts)


def write(path, questions, version="1.1"):
    paragraphs = [
        {
            "context": one.context,
            "qas": [
                {
                    "id": one.id,
                    "question": one.question,
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(one.answers, one.starts)
                    ],
                }
            ],
        }
        for one in questions
    ]
    data = [{"title": "Made up", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": version, "data": data}))
    return path


def marked(count, seed=0):
    """The answer is the one name among eight colours."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
    made = []
    for i in range(count):
        context = [str(word) for word in rng.permutation(words)]
        name = str(rng.choice(["Paris", "London", "Rome", "Berlin"]))
        context.insert(int(rng.integers(0, 9)), name)
        made.append(asked(f"q{i}", " ".join(context), "which?", name))
    return made
