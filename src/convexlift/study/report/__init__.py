"""The page of a comparison: answers in sentences, tables and figures."""
