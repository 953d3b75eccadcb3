"""How well a method does on scenes that it was not tuned on."""
