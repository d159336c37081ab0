"""Made-up texts and documents, and the size of a vocabulary made of them."""

# Of a small byte-level vocabulary of VOCAB tokens, which is made of these texts.
TEXTS = [
    "A student learns from its teacher.",
    "Short.",
    "  2 ms on a v5e, n'est-ce pas? \u00e9t\u00e9 \u6f22\u5b57",
    "hide <mask> or [MASK]",
]
VOCAB = 320


def stories(count=120, sentences=9):
    """Documents whose every word names document and sentence: "D7 S3 ..."."""
    return [
        [
            f"Story{d} line{s} " + " ".join(["again"] * ((d + s) % 5 + 2)) + "."
            for s in range(sentences)
        ]
        for d in range(count)
    ]
