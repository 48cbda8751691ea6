"""Unit vectors of documents: from models that read them, and from the user's own files."""
