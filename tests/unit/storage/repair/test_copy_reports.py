"""Which custodian may delete a copy, and how often its reports cause a look."""

from xsc.storage.repair.repairer import REPORTS_AN_OBJECT_MAX, REPORTS_MS, CopyReports

REF, OTHER, ONE, TWO = (bytes([number]) * 32 for number in range(4))


def test_a_custodian_may_delete_once_after_each_proof():
    reports = CopyReports()
    assert reports.note(REF, ONE, 0)
    assert reports.waiting(REF) == [ONE]
    assert not reports.take_permission(REF, ONE)
    reports.permit(REF, [ONE])
    assert reports.waiting(REF) == []
    assert not reports.take_permission(REF, TWO)
    assert not reports.take_permission(OTHER, ONE)
    assert reports.take_permission(REF, ONE)
    assert not reports.take_permission(REF, ONE)


def test_a_report_causes_one_look_until_it_is_answered_and_so_many_a_day():
    reports = CopyReports()
    for _ in range(REPORTS_AN_OBJECT_MAX):
        assert reports.note(REF, ONE, 0)
        assert not reports.note(REF, ONE, 0), "it waits for that look"
        reports.permit(REF, [ONE])
        assert reports.take_permission(REF, ONE)
    assert not reports.note(REF, ONE, REPORTS_MS - 1)
    assert reports.note(REF, TWO, 0), "others are counted by themselves"
    assert reports.note(REF, ONE, REPORTS_MS)
