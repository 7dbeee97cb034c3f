"""The comparison of finished runs: compare.py is the entry point, sections/ the contents, render.py the files."""
