"""The papers' tables as data, and ours beside them. Imports no engine; nothing of ours calls it."""
