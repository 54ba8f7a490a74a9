"""Reading JSON (RFC 8259) where the ``json`` module's megabyte and a half is too much: in a sidecar.

It is read as strictly as the RFC has it, but for one thing: of two members with the same name the last counts.
"""

DEEPEST = 50
"""Arrays and objects inside one another, at most."""

_SPACE = " \t\n\r"
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}
_HEX = "0123456789abcdefABCDEF"


def parse(text: str) -> object:
    """Of ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and ``None`` what the text says.

    Raises ``ValueError`` with a sentence that says where it is no JSON.
    """
    return _Reader(text).whole()


class _Reader:
    __slots__ = ("at", "depth", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def whole(self) -> object:
        value = self.value()
        if self.peek():
            raise self.wrong("the end")
        return value

    def wrong(self, wanted: str) -> ValueError:
        found = self.text[self.at : self.at + 10]
        there = f"there is {found!r}" if found else "it ends"
        return ValueError(f"It is not JSON: at character {self.at + 1} {there}, where {wanted} should be.")

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        text, at = self.text, self.at
        while text[at : at + 1] and text[at] in _SPACE:
            at += 1
        self.at = at
        return text[at : at + 1]

    def value(self) -> object:
        first = self.peek()
        if first == '"':
            return self.string()
        if first and first in "{[":
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError(f"It is not read: more than {DEEPEST} arrays and objects are inside one another.")
            value: object = self.members() if first == "{" else self.items()
            self.depth -= 1
            return value
        if first in _WORDS:
            word, meaning = _WORDS[first]
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return meaning
        return self.number()

    def members(self) -> "dict[str, object]":
        found: dict[str, object] = {}
        self.at += 1
        if self.peek() == "}":
            self.at += 1
            return found
        while True:
            if self.peek() != '"':
                raise self.wrong("a name in double quotes")
            name = self.string()
            if self.peek() != ":":
                raise self.wrong("a colon")
            self.at += 1
            found[name] = self.value()
            after = self.peek()
            if after not in (",", "}"):
                raise self.wrong("a comma or the end of the object")
            self.at += 1
            if after == "}":
                return found

    def items(self) -> "list[object]":
        found: list[object] = []
        self.at += 1
        if self.peek() == "]":
            self.at += 1
            return found
        while True:
            found.append(self.value())
            after = self.peek()
            if after not in (",", "]"):
                raise self.wrong("a comma or the end of the array")
            self.at += 1
            if after == "]":
                return found

    def string(self) -> str:
        parts: list[str] = []
        self.at += 1
        while True:
            character = self.text[self.at : self.at + 1]
            if character < " ":  # a control character, or the end
                raise self.wrong("the end of a string")
            self.at += 1
            if character == '"':
                # What is beyond U+FFFF is escaped as two, which UTF-16 takes for one.
                return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            parts.append(self.escaped() if character == "\\" else character)

    def escaped(self) -> str:
        letter = self.text[self.at : self.at + 1]
        if letter == "u":
            digits = self.text[self.at + 1 : self.at + 5]
            if len(digits) == 4 and not digits.strip(_HEX):
                self.at += 5
                return chr(int(digits, 16))
        elif letter in _ESCAPES:
            self.at += 1
            return _ESCAPES[letter]
        raise self.wrong("an escape")

    def number(self) -> "int | float":
        text, start = self.text, self.at
        at = start + 1 if text[start : start + 1] == "-" else start
        whole = self._digits(at)
        if whole == at or (text[at] == "0" and whole > at + 1):
            raise self.wrong("a value")
        end = whole
        if text[end : end + 1] == ".":
            end = self._digits(whole + 1)
            if end == whole + 1:
                raise self.wrong("a value")
        if text[end : end + 1] in ("e", "E"):
            exponent = end + 2 if text[end + 1 : end + 2] in ("+", "-") else end + 1
            end = self._digits(exponent)
            if end == exponent:
                raise self.wrong("a value")
        if end - start > 400:
            raise self.wrong("a number of fewer digits")
        self.at = end
        return int(text[start:end]) if end == whole else float(text[start:end])

    def _digits(self, at: int) -> int:
        """Where the digits from here on end."""
        text = self.text
        while text[at : at + 1] and text[at] in "0123456789":
            at += 1
        return at
