"""Made-up questions that several tests ask, and a file of them in SQuAD's form."""

import json

import numpy as np

from autodistill_jax.data.squad import Question


def make_question(name, context, question, *answers):
    starts = tuple(context.find(answer) for answer in answers)
    return Question(name, question, context, answers, starts)


def write(path, questions, version="1.1"):
    paragraphs = [
        {
            "context": question.context,
            "qas": [
                {
                    "id": question.id,
                    "question": question.question,
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(question.answers, question.starts)
                    ],
                }
            ],
        }
        for question in questions
    ]
    data = [{"title": "Made up", "paragraphs": paragraphs}]
    path.write_text(json.dumps({"version": version, "data": data}))
    return path


def marked(count, seed=0):
    """The answer is the one name among eight colours."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
    questions = []
    for i in range(count):
        context = [str(word) for word in rng.permutation(words)]
        name = str(rng.choice(["Paris", "London", "Rome", "Berlin"]))
        context.insert(int(rng.integers(0, 9)), name)
        questions.append(make_question(f"q{i}", " ".join(context), "which?", name))
    return questions
