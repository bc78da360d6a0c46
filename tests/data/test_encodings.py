"""Which encoding the bytes of a file have: sentences of many languages in their old encodings."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from flaxbert.data.encodings import advice, candidates

SENTENCES = {
    # Python's codec: (iconv's name, sentences)
    "gbk": (
        "GB18030",
        "这家餐厅的菜很好吃，服务员也很热情。\n下次还会再来，推荐给大家！\n",
        "质量太差了,差评\n物流很快,好评\n",
        "屏幕很清楚，但是电池用不了一天。",
    ),
    "gb18030": ("GB18030", "老板说“没问题”，结果等了三个小时——真让人生气。"),
    "big5": (
        "BIG5",
        "這家餐廳的菜很好吃，服務生也很親切。\n下次還會再來，推薦給大家！\n",
        "品質太差了,負評\n出貨很快,好評\n",
    ),
    "shift_jis": (
        "CP932",
        "料理がとてもおいしくて、店員さんも親切でした。\n また行きたいです。\n",
        "バッテリーがすぐ切れる,悪い\n",
        "配送は早かったけれど、箱がつぶれていました。",
    ),
    "euc_jp": ("EUC-JP", "料理がとてもおいしくて、店員さんも親切でした。\n また行きたいです。\n"),
    "euc_kr": (
        "CP949",
        "음식이 정말 맛있고 직원들도 친절했습니다.\n다음에 또 가고 싶어요.\n",
        "배송이 너무 늦어요,부정\n",
    ),
    "latin_1": (
        "WINDOWS-1252",
        "La soirée était très agréable, à bientôt !\n",
        "Das Essen war köstlich, die Straße aber laut.\n",
        "La habitación está sucia y el señor no contestó.\n",
        "O serviço não é bom, é péssimo.\n",
        "caf\xe9,pos\n",
    ),
    "cp1252": ("WINDOWS-1252", "It’s a “must see” – don’t miss it…\n", "5 € für nichts\n"),
    "cp1250": (
        "WINDOWS-1250",
        "Obsługa była bardzo miła, ale jedzenie zimne.\n",
        "Už nikdy.\n",
    ),
    "cp1254": ("WINDOWS-1254", "Yemekler çok güzeldi, garsonlar da ilgiliydi, teşekkürler.\n"),
    "cp1251": ("WINDOWS-1251", "Еда вкусная, персонал вежливый.\nПридём ещё раз.\n"),
    "koi8_r": ("KOI8-R", "Еда вкусная, персонал вежливый.\nПридём ещё раз.\n"),
    "cp1253": ("WINDOWS-1253", "Πολύ νόστιμα φαγητά, εξαιρετική ταινία.\n"),
    "cp1256": ("WINDOWS-1256", "الطعام لذيذ والخدمة ممتازة\n"),
}


@pytest.mark.parametrize("codec", SENTENCES)
def test_sentences(codec):
    name, *sentences = SENTENCES[codec]
    for sentence in sentences:
        for sample in (sentence, sentence * 50, f"4711,good film\n{sentence}"):
            data = sample.encode(codec)
            assert name in [found for _, found in candidates(data)][:1], sample
            # Cut anywhere: at the end of a sample too.
            assert candidates(data + sentence.encode(codec)[:-3])[0][1] == name


def test_what_cannot_be_told_apart():
    """Few characters: all that they may be. No text: every encoding."""
    found = [name for _, name in candidates("好,差\n".encode("gbk"))]
    assert {"GB18030", "CP949"} <= set(found)
    assert candidates(bytes(range(128, 256))) == []
    told = advice(bytes(range(128, 256)), "a.csv.gz")
    assert "gunzip -c a.csv.gz | iconv -f ENCODING" in told and "GB18030, BIG5, CP932" in told


def test_a_damaged_line_in_utf8():
    told = advice("好电影，推荐".encode()[:-1] + "\n很好，喜欢\n".encode(), "a.csv")
    assert "are UTF-8: repair this line" in told and "iconv -c -f UTF-8" in told


@pytest.mark.skipif(not shutil.which("iconv"), reason="the command is not installed")
@pytest.mark.parametrize("codec", SENTENCES)
def test_the_command_that_is_advised_works(codec, tmp_path):
    for sentence in SENTENCES[codec][1:]:
        (tmp_path / "my file.csv").write_bytes(sentence.encode(codec))
        told = advice(sentence.encode(codec), "my file.csv")
        command = told.split(": ")[1].split("; or ")[0]
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
        assert (tmp_path / "NEW").read_text(encoding="utf-8") == sentence
