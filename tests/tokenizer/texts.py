"""Texts for the tokenizer tests: something to train tiny vocabularies on, and what usually goes wrong."""
# ruff: noqa: RUF001

CORPUS = """\
The quick brown fox jumps over the lazy dog. It's what they'd expect; we've seen 3 of 14 and 2718 others, haven't we?
Once upon a time there was a tokenizer that split words into pieces, pieces into bytes, and bytes into nothing at all.
HTTPServer parseJSON camelCase snake_case SCREAMING_CASE McDonald's O'Neill's DON'T They'Re I'LL
Der Bär fährt über die Straße und grüßt höflich. Größe, Äpfel, Öl, Übermut.
L'été, où est la bibliothèque ? Ça coûte 1 234,56 € — « d'accord ».
El niño comió ¿qué? ¡Mañana! El pingüino está aquí.
Съешь же ещё этих мягких французских булок, да выпей чаю. В 1999 году было 365 дней.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.
天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。我们在2024年12月31日见面。
いろはにほへと ちりぬるを。カタカナとひらがな、漢字も混ざる123円。
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
नमस्ते दुनिया, यह एक परीक्षण है। कान्हा १२३
مرحبا بالعالم، هذا اختبار ١٢٣ للنص.
שלום עולם, זה מבחן.
สวัสดีชาวโลก นี่คือการทดสอบ
🚀 (rocket) 😀😃😄 👨‍👩‍👧‍👦 🏳️‍🌈 ✅ ❤️ 🇩🇪🇫🇷
def main(argv):
    for i in range(10):
        if argv[i] != "--help" and i >= 2:
            print(f"{i:>4} {argv[i]!r}")  # a comment
\treturn {"key": [1, 2, 3.14, -5e-10], 'x': None}
<div class="box"><p>Hello&nbsp;world</p></div>
x = a*b + c/d - e%f == g != h <= i >= j && k || l ^ m & n | ~o
===== ----- ##### ***** ..... !!!!! ????? ______ /////
https://example.org/path?query=1&other=two#fragment user@example.com
1 12 123 1234 12345 123456 1234567 0x1F 1e10 1,000,000.00 ½ ² Ⅷ
"""

TRICKY = [
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n\n",
    "\t\n",
    " \n \n",
    "\r\n\r\n x",
    "Hello world",
    " Hello, world!",
    "  leading and trailing  ",
    "a  b   c    d",
    "tabs\tand\t\tnewlines\n\n  indented\n    more\n",
    "I'm you're we've he'll they'd it's 'tis 'S 'RE 'Ll don'T",
    "it\u2019s \u017f '\u017f x'\u017f",
    "1 22 333 4444 55555 666666 7777777",
    " 1 22  333 12.5 -3,000.25 0xDEADBEEF 1e-9",
    "x2y34z567 v1.2.3-rc4",
    "\u00b2\u00b3\u00b9\u00bc\u00bd\u00be x\u00b2+\u0661\u0662\u0663 \u2167 \u096b",
    "\u043c \u043d\u043e\u0432\u044b\u0439 \u0434\u0435\u043d\u044c 42",
    "HELLOworld helloWORLD HeLLo \u01c5 \u01c5abc ABCdefGHI",
    "\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e\uff0c\u3002",
    "\u3042\u30a2\u4e9c\uac00\u3131\u0e01\u0e33 \u0915\u094d\u0937",
    "e\u0301 re\u0301sume\u0301 n\u0303 o\u0302\u0323 \u1e69 \ufb01 \u212b",
    "a\u0300b\u0301 \u0300 \u0301x 1\u0308 !\u0302",
    "\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f \u2705 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \u2764\ufe0f 1\ufe0f\u20e3",
    "\u00a0\u2003 \u3000x \u200b \u2028 \u2029 \u0085 y",
    "\u200f\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u060c",
    "$100+=<x>^`y`|~z~ a_b __init__ #!/usr/bin/env",
    "!!!??? ...\n;;; ---/// //\n/*\r\n*/",
    "\\n \\\\ \" ' ` ''' \"\"\"",
    "\x00\x01\x04\x1b[31mred\x7f",
    "====== ===== ==== === == =",
    "hahahahaha aaaaaaaaa ababababa 000000000",
    "<|im_start|>user<|im_end|> <s></s> <unk> <0x41>",
    "\u2581under\u2581\u2581score",
]
