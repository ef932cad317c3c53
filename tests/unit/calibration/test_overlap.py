from __future__ import annotations

from expertweaver.calibration.documents import Document
from expertweaver.calibration.overlap import SPAN_WORDS, Overlap, find_overlaps


def doc(*words: object) -> Document:
    return Document(" ".join(map(str, words)), "d")


def test_thirteen_words_are_a_span_and_twelve_are_not() -> None:
    assert SPAN_WORDS == 13
    calibration = [doc("before", *range(13), "after")]
    assert find_overlaps([doc("other", *range(13), "words")], calibration) == [
        Overlap(0, "0 1 2 3 4 5 6 7 8 9 10 11 12")
    ]
    assert find_overlaps([doc("other", *range(12), "words", "that", "differ")], calibration) == []


def test_case_punctuation_and_spacing_do_not_hide_a_span() -> None:
    words = [f"Word{i}" for i in range(13)]
    [found] = find_overlaps([Document(",\n ".join(words).upper(), "d")], [doc(*words)])
    assert found.span == " ".join(words).lower()


def test_the_first_shared_span_of_each_document_is_named() -> None:
    calibration = [doc(*range(40))]
    documents = [doc("a", "b"), doc("x", *range(5, 30)), doc(*range(100, 140)), doc(*range(27, 40))]
    found = find_overlaps(documents, calibration)
    assert [overlap.index for overlap in found] == [1, 3]
    assert found[0].span.split() == [str(i) for i in range(5, 18)]
    assert found[1].span.split() == [str(i) for i in range(27, 40)]


def test_a_short_document_is_one_span() -> None:
    assert find_overlaps([doc("a", "b", "c")], [doc("a", "b"), doc("A", "b,", "c!")]) == [Overlap(0, "a b c")]
    assert find_overlaps([doc("a", "b", "c")], [doc("a", "b"), doc("a", "b", "c", "d")]) == []


def test_documents_without_words_do_not_match_each_other() -> None:
    assert find_overlaps([Document("...", "d")], [Document("!!!", "d")]) == []


def test_the_shipped_texts_are_disjoint_and_the_finder_would_see_it() -> None:
    from expertweaver.assets import shipped_calibration, shipped_heldout
    from expertweaver.calibration.documents import read_documents

    heldout, calibration = read_documents([str(shipped_heldout())]), read_documents([str(shipped_calibration())])
    assert find_overlaps(heldout, calibration) == []
    assert len(find_overlaps(heldout, [*calibration, heldout[3]])) == 1
