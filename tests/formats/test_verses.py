"""Forms of poems that are known, and of texts that have none."""

import pytest

from pipeline.formats.verses import is_couplet, is_regulated

# Wang Zhihuan, Li Bai, Du Fu (twice), Du Mu; the forms are those that every anthology names.
POEMS = {
    "wujue": "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。",
    "qijue": "朝辭白帝彩雲間，千里江陵一日還。\n兩岸猿聲啼不住，輕舟已過萬重山。",
    "wulü": ("國破山河在，城春草木深。\n感時花濺淚，恨別鳥驚心。\n烽火連三月，家書抵萬金。\n白頭搔更短，渾欲不勝簪。"),
    "qilü": (
        "丞相祠堂何處尋，錦官城外柏森森。\n映階碧草自春色，隔葉黃鸝空好音。\n"
        "三顧頻煩天下計，兩朝開濟老臣心。\n出師未捷身先死，長使英雄淚滿襟。"
    ),
    "question": "借問酒家何處有，牧童遙指杏花村？\n清明時節雨紛紛，路上行人欲斷魂。",
}


@pytest.mark.parametrize("poem", POEMS.values(), ids=POEMS.keys())
def test_poems_of_known_form_are_regulated(poem: str) -> None:
    assert is_regulated(poem)
    assert all(map(is_couplet, poem.split("\n")))


@pytest.mark.parametrize(
    ("couplets", "broken"),
    [
        (1, POEMS["wujue"].split("\n")[0]),
        (3, "\n".join(POEMS["wulü"].split("\n")[:3])),
        (5, f"{POEMS['wulü']}\n{POEMS['wujue'].split()[0]}"),
        (2, f"{POEMS['wujue'].split()[0]}\n{POEMS['qijue'].split()[0]}"),  # five, then seven
    ],
)
def test_couplets_in_a_wrong_number_or_of_two_lengths_are_no_poem(couplets: int, broken: str) -> None:
    assert not is_regulated(broken)
    assert [is_couplet(line) for line in broken.split("\n")] == [True] * couplets


@pytest.mark.parametrize(
    "line",
    [
        "",
        "白日依山盡，黃河入海流",
        "白日依山盡黃河入海流。",
        "白日依山盡，黃河入海。",
        "白日依山，黃河入海。",
        "白日依山盡，朝辭白帝彩雲間。",
        "白日依山盡，黃河入海流。 ",
        "白日依山盡，黃河入海流。\n",
        "白日依山、，黃河入海流。",
        "白日依山�，黃河入海流。",
        "abcde，fghij。",
        "滚滚长江东逝水，浪花淘尽英雄。",  # a ci of the novel: 7 + 6
    ],
)
def test_other_lines_are_no_couplets(line: str) -> None:
    assert not is_couplet(line)
    assert not is_regulated(f"{line}\n{line}")


def test_a_single_missing_or_added_character_anywhere_breaks_the_form() -> None:
    for poem in POEMS.values():
        for place in range(len(poem)):
            assert not is_regulated(poem[:place] + poem[place + 1 :])
            assert not is_regulated(f"{poem[:place]}春{poem[place:]}")
