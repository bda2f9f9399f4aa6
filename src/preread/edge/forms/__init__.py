"""The forms in which APIs have their answers: `Piece`s and `Done` become bytes, whole or as events."""
