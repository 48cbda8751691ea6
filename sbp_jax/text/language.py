"""The language a text is written in, by py3langid: byte n-grams and naive Bayes, its model in its wheel."""

from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

UNDETERMINED = "und"  # ISO 639-2
NO_LANGUAGE = "zxx"  # what the model answers for code and tables
LEAST = 0.5  # probability below which the answer is not taken
CHARACTERS = 600  # of the beginning that are looked at: more change nothing and take longer
SHORTEST = 12  # characters below which there is nothing to judge by


def language(text: str) -> str:
    """ISO 639-1 code of the language, `und` where the text is too short or no language is probable."""
    beginning = text[:CHARACTERS]
    if len(beginning.strip()) < SHORTEST:
        return UNDETERMINED
    name, probability = _identifier().classify(beginning)
    return str(name) if probability >= LEAST and name != NO_LANGUAGE else UNDETERMINED


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
