"""Five hundred texts as models write them at their worst, the same ones in every run.

Each is hostile, half Markdown, in another direction, or simply not what a parser expects.
"""

import random

BY_HAND = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//x.example/a.js></SCRIPT>",
    "<img src=x onerror=alert(1)>",
    '<svg onload="alert(1)"><a xlink:href="javascript:alert(1)">x</a></svg>',
    "<iframe src='https://x.example'></iframe>",
    "<a href='javascript:alert(1)'>x</a> <style>*{display:none}</style> <base href=//x>",
    "<form action=//x><input autofocus onfocus=alert(1)></form>",
    "<!-- --><math><mtext></mtext></math><![CDATA[<script>]]>",
    "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1)) [x](\\javascript:alert(1)) <javascript:alert(1)>",
    "[x](data:text/html;base64,PHNjcmlwdD4=) [x](data:image/png;base64,AAAA) [x](vbscript:a)",
    "[x](data:image/svg+xml,%3Csvg/onload=alert(1)%3E) [x](file:///etc/passwd) [x](blob:a)",
    "[x]\n\n[x]: javascript:alert(1) 'title'",
    '[x](http://a.example "t\\" onmouseover=\\"alert(1)")',
    '![x](https://x.example/pixel.png) ![x](x "onerror=alert(1)") ![x][y]\n\n[y]: //x.example',
    '```"><script>alert(1)</script>\nunclosed',
    "~~~js onload=alert(1)\n</code></pre><script>alert(1)</script>",
    "`</code><script>alert(1)</script>",
    "|a|b|\n|-|:-:|\n|<script>|<img src=x onerror=alert(1)>|",
    "null \0 <scr\0ipt>alert(1)</scr\0ipt> [x](java\0script:alert(1))",
    "\ud800 half a character [x](http://a.example/\udfff)",
    "</p></div></article><script>alert(1)</script>",
    "<a href=x" + " " * 500 + "onclick=alert(1)>",
    # What pages of this kind have swallowed.
    "Roses are red,\nviolets are blue,\n  and this line\n    is indented.",
    "def f(x):\n    # done\n    return x * 2 * 3\n# done\nx = __init__(a_b_c)",
    "std::vector<int> v; map<string, vector<int>> m; a < b && c > d",
    "<think>\nLet me see.\n</think>\n<ANSWER>42</ANSWER> and what follows",
    "\\(a_1 * b_2 * c\\) and \\[ \\frac{1}{2} \\] and $x_i * y_j$ and $$\\sum_{i} \\\\ x$$",
    "\\[\n\\begin{aligned}\n- a &= b \\\\\n+ c &= d\n\\end{aligned}\n\\]",
    "It costs $5 and $6, and C:\\new\\table, and 100\\%.",
    "שלום עולם, this is mixed.\n\nمرحبا بالعالم 123 (abc)\n\n- עברית\n- English",
    "\u202eabc\u202c \u200bzero\u200d width \ufeff \u2066x\u2069",
    "| a | b |\n|---|---|\n| 1 | 2 | 3 | 4 |\n| x \\| y | `|` |\n| only |",
    "a | b\n--- | ---\n1 | 2\n\nTitle\n=====\n\nOther\n---\n",
    "# One #\n## Two ##\n#three\n####### seven\n#",
    "1. one\n1. one\n7. seven\n   1) sub\n\n- \n- x\n\n      code\n* * *",
    "> a\n>\n> b\n>> c\n> ```py\n> x = 1\n> ```\n> - d\n>   e",
    "&lt;b&gt; &amp;amp; &#0; &#x1F600; &nbsp;&copy",
    "a  \nb\\\nc\n\n\n\n    code\n\n\ttab\tx\n- a\n\n\tb",
    "**a *b* __c__ ~~d~~ `e``f` ``g`h``** \\*x\\* *a**b*c**",
    "<https://a.example> <a@b.example> https://c.example [a][b] [c] [^1]\n\n[b]: /x\n[^1]: note",
    "`multi\nline code` and [a\nb](/c\n'd') and *e\nf*",
    "```diff\n- a\n+ b\n```\n```python\n'''\n```\n````\n```\n````",
    "👩‍👩‍👧 e\u0301 ﬁ Å 𝔘 \u0000 \x0b \x0c \x1c \x85 \u2028 \u2029 end",
    "x" * 3000,
    ">" * 300 + " deep",
    "- " * 150 + "deep",
    "*" * 500 + "a" + "_" * 500,
    "[" * 300 + "a" + "](b)" * 300,
]
PIECES = [
    *("[", "](", ")", "](http://a.example/x?y=1&z=2 'title')", "<", ">", "`", "```", "```python\n"),
    *("\n", "\n\n", "\n    ", "\n- ", "\n1. ", "\n> ", "\n# ", "\n| a | b |\n|---|---|\n| ", "\t"),
    *('"', "javascript:", "&#x41;", "&amp;", "\\", "\\(", "\\)", "\\[\n", "\n\\]", "$", "$$", "|"),
    *("*", "**", "_", "__", "~~", "\n---\n", "\n===\n", "word", "x_1", "שלום", "\u200f", "<think>"),
    *("{", "}", "\\begin{x}", "\\end{x}", "!", "\r\n", "\0", " ", "  \n", "if a < b:\n    # c\n"),
]


def odd_texts() -> list[str]:
    """The texts: those by hand, some of them inside of other markup, and mixtures."""
    draw = random.Random(0)
    texts = list(BY_HAND)
    texts += [f"# Title\n\n- a list\n- {text}\n\n> {text}" for text in BY_HAND]
    words = PIECES + [word for text in BY_HAND[:23] for word in text.split()]
    while len(texts) < 500:
        text = "".join(draw.choice(words) for _ in range(draw.randint(3, 14)))
        texts += [text] * (bool(text.strip()) and text not in texts)
    return texts


def seen(text: str) -> str:
    """The characters that a person sees; those that cannot be shown are one and the same."""
    text = text.replace("\0", "\ufffd")
    return "".join(c for c in text if not (c.isspace() or "\ud800" <= c <= "\udfff"))
