"""The page for those who do not see it, see it badly, or use no pointer: by Chromium's own accessibility tree."""

import pytest

from page_server import IMAGE, browse, needs_page, once

# Roles that a user acts on, and those that stand for a picture or a region: each says what it is.
NAMED = {
    "button",
    "checkbox",
    "combobox",
    "ComboBoxGrouping",
    "PopUpButton",
    "ColorWell",
    "link",
    "listbox",
    "MenuListPopup",
}
NAMED |= {"option", "radio", "radiogroup", "searchbox", "slider", "spinbutton", "tab", "textbox", "application"}
NAMED |= {"image", "img", "graphics-document", "Canvas", "dialog", "alertdialog", "progressbar", "ProgressIndicator"}
NAMED |= {"complementary", "region", "list", "group"}
UNNAMED = {"MenuListPopup", "list", "group"}  # these may go without
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3

STATES = {"image", "export", "project", "help", "category", "question", "brush"}

pytestmark = needs_page


@pytest.fixture(scope="module")
def seen(tmp_path_factory, page_address):
    """What web/e2e/accessibility.mjs saw."""
    found = once(tmp_path_factory, "accessibility", lambda _: browse("accessibility.mjs", page_address(), image=IMAGE))
    assert found["errors"] == []
    return found


def test_every_control_and_picture_has_a_role_and_a_name(seen):
    assert set(seen["names"]) == STATES | {"empty"}
    for state, nodes in seen["names"].items():
        nameless = [node for node in nodes if node["role"] in NAMED - UNNAMED and not node["name"].strip()]
        assert nameless == [], state
        # What takes the focus and has no role is a control that nobody can recognise.
        assert not [node for node in nodes if node["states"].get("focusable") and node["role"] == "generic"], state


def test_controls_of_the_same_kind_can_be_told_apart(seen):
    for state, nodes in seen["names"].items():
        names = [
            (node["role"], node["name"]) for node in nodes if node["role"] in {"button", "radio", "textbox", "slider"}
        ]
        assert len(names) == len(set(names)), (state, sorted({name for name in names if names.count(name) > 1}))


def test_states_are_told(seen):
    tree = seen["names"]["image"]
    by_name = {node["name"]: node for node in tree if node["role"] not in {"StaticText", "InlineTextBox"}}
    assert by_name["Point and box"]["states"]["checked"] == "true"
    assert by_name["Scribble"]["states"]["checked"] == "false"
    assert by_name["coffee.png"]["states"]["selected"] is True
    assert by_name["Delete Object 2"]["role"] == "button"
    assert {node["name"] for node in tree if node["role"] == "combobox"} == {"Category of Object 2"}
    assert by_name["Undo"]["states"].get("disabled") is not True


def test_the_focus_goes_through_the_page_in_its_order_and_can_be_seen(seen):
    order = seen["focus"]["order"]
    parts = [each["part"] for each in order]
    assert [part for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]] == [
        "HEADER",
        "MAIN",
        "ASIDE",
        "FOOTER",
    ]
    assert all(each["ring"] >= 1.5 and each["inside"] for each in order), order
    ids = [each["id"] for each in order]
    assert ids.index("stage") < ids.index("tool-point") < ids.index("done") < ids.index("granularity")
    # One stop for each group of choices; arrows go on inside.
    assert sum(name.startswith("tool-") for name in ids) == 1 and sum(name.startswith("choice-") for name in ids) == 1


def test_dialogs_keep_the_focus_and_give_it_back(seen):
    for opener, found in seen["focus"]["opened"].items():
        assert found["after"] == opener
        part = "DIV" if opener in {"export-button", "project-button"} else "DIALOG"  # menus are popovers
        assert found["inside"][0] is not None, opener
        # None: the browser's own controls, between a dialog's last and first.
        assert {each["part"] for each in found["inside"] if each} == {part}, (opener, found)
    assert seen["focus"]["toggled"] == [True, False, True]
    assert seen["focus"]["asked"] == "ask-input" and seen["focus"]["afterQuestion"] == "project-button"


def test_what_changes_is_announced(seen):
    found = seen["announcements"]
    said = {name: [text for live, text in found[name] if live == "polite"] for name in ("opened", "clicked", "undone")}
    assert any(text.startswith("Encoding the image") for text in said["opened"])
    assert said["opened"][-1].startswith("coffee.png is ready.")
    percent = 100 * found["area"] / (400 * 600)
    assert said["clicked"][-1].startswith(f"{percent:.0f}% of the image")
    assert said["undone"] == ["Undone: Click."]
    assert ["assertive", "Export: The disk is full."] in found["failed"]
    assert any(text.startswith("Finding everything") for _, text in found["started"])
    assert found["progress"] == ["Finding everything", True]
    assert found["cancelled"][-1] == ["polite", "Cancelled."]


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(seen, scheme):
    assert luminance([255, 255, 255]) == pytest.approx(1) and luminance([0, 0, 0]) == 0
    assert set(seen["contrast"][scheme]) == STATES | {"empty"}
    weak = {}
    for state, texts in seen["contrast"][scheme].items():
        assert len(texts) > 3, state
        for text in texts:
            dark, light = sorted((luminance(text["colour"]), luminance(text["ground"])))
            ratio = (light + 0.05) / (dark + 0.05)
            if ratio < LEAST_CONTRAST:
                weak[text["of"], text["text"]] = (state, round(ratio, 2))
    assert weak == {}
