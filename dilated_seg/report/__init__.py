"""The comparison of finished runs: compare.py is the way through, sections.py what is said, document.py how it is written."""
