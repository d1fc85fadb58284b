"""The laboratory: the engine and its rivals in the same discrete-event worlds."""
