"""The page in a browser: silent, alone, and it answers clicks and keys."""

import json
import shutil
import urllib.parse

import pytest

from tests.report import studies

webdriver = pytest.importorskip(
  "selenium.webdriver", reason="selenium is not installed"
)
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.chrome import service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
  not (BROWSER and DRIVER), reason="no chromium with chromedriver here"
)
FLAGS = (
  *("--headless=new", "--no-sandbox", "--disable-gpu"),
  *("--disable-background-networking", "--window-size=1280,900"),
)


@pytest.fixture(scope="module")
def chromium():
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for flag in FLAGS:
    options.add_argument(flag)
  logs = {"browser": "ALL", "performance": "ALL"}
  options.set_capability("goog:loggingPrefs", logs)
  found = webdriver.Chrome(options=options, service=service.Service(DRIVER))
  yield found
  found.quit()


@pytest.fixture
def page(chromium, built):
  chromium.get("about:blank")
  chromium.get((built / "index.html").as_uri())
  chromium.execute_script(
    "localStorage.clear();"
    "document.documentElement.style.scrollBehavior = 'auto';"
    "for (const d of document.querySelectorAll('details')) d.open = true;"
  )
  yield chromium
  # Whatever a test did, nothing went wrong and nothing was asked for.
  assert [line["message"] for line in chromium.get_log("browser")] == []
  events = [
    json.loads(line["message"])["message"]
    for line in chromium.get_log("performance")
  ]
  asked = {
    event["params"]["request"]["url"].partition("#")[0]
    for event in events
    if event["method"] == "Network.requestWillBeSent"
  }
  assert asked == {(built / "index.html").as_uri()}


def _rows(page, table, shown=True):
  rows = page.find_elements(By.CSS_SELECTOR, f"#table-{table} tbody tr")
  return [row for row in rows if row.is_displayed() or not shown]


def _panel(page):
  return page.find_element(By.ID, "network")


def _mark(page, figure, number=0):
  path = f"#figure-{figure} svg [data-network]"
  mark = page.find_elements(By.CSS_SELECTOR, path)[number]
  page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
  return mark


def test_nothing_is_wider_than_a_phone(page):
  page.set_window_size(500, 900)  # no window is narrower
  widths = "[document.documentElement.scrollWidth, innerWidth]"
  needed, there = page.execute_script(f"return {widths}")
  page.set_window_size(1280, 900)
  assert needed <= there


@pytest.mark.parametrize("width", [500, 1280])
def test_the_claims_are_not_cut_off_at_the_right(page, width):
  page.set_window_size(width, 900)
  box = page.find_element(By.CSS_SELECTOR, "#table-claims .box")
  wide, seen = (box.get_property(n) for n in ("scrollWidth", "clientWidth"))
  right = box.rect["x"] + seen
  page.set_window_size(1280, 900)
  assert wide <= seen and right <= width


def test_tables_sort_by_a_click_and_by_a_key(page):
  head = next(
    head
    for head in page.find_elements(By.CSS_SELECTOR, "#table-regimes th")
    if head.text.startswith("params")
  )
  column = page.execute_script("return arguments[0].cellIndex", head)

  def values():
    keys = [
      row.find_elements(By.TAG_NAME, "td")[column].get_attribute("data-key")
      for row in _rows(page, "regimes")
    ]
    return list(map(int, keys))

  head.click()
  assert head.get_attribute("aria-sort") == "ascending"
  assert values() == sorted(values()) and len(set(values())) > 1
  head.send_keys(Keys.ENTER)
  assert values() == sorted(values(), reverse=True)


def test_tables_filter_by_words_and_by_numbers(page):
  every = len(_rows(page, "regimes"))
  field = page.find_element(By.CSS_SELECTOR, "#table-regimes input")
  field.send_keys("cnn")
  rows = _rows(page, "regimes")
  assert 0 < len(rows) < every
  assert all("cnn" in row.text for row in rows)
  sizes = sorted(
    int(row.find_elements(By.TAG_NAME, "td")[4].get_attribute("data-key"))
    for row in rows
  )
  field.send_keys(f" params<={sizes[0]}")
  assert len(_rows(page, "regimes")) == 1
  assert f"1 of {every} rows" in field.find_element(By.XPATH, "..").text
  field.send_keys(" nowhere")
  assert not _rows(page, "regimes")
  field.clear()
  field.send_keys("validation>50")  # as it is shown: in per cent
  shown = [
    float(row.find_elements(By.TAG_NAME, "td")[7].text)
    for row in _rows(page, "regimes")
  ]
  keys = page.execute_script(
    "return [...document.querySelectorAll('#table-regimes tbody tr')]"
    ".map((row) => +row.cells[7].dataset.key)"
  )
  assert len(shown) == sum(key > 0.5 for key in keys) > 0
  assert len(shown) < every and min(shown) > 50
  field.clear()
  field.send_keys(" ")
  assert len(_rows(page, "regimes")) == every


@pytest.mark.parametrize("figure", ["accuracy", "phases", "pareto", "damage"])
def test_a_click_on_a_mark_opens_its_network(page, figure):
  mark = _mark(page, figure)
  key = mark.get_attribute("data-network")
  ActionChains(page).move_to_element(mark).click().perform()
  panel = _panel(page)
  assert panel.is_displayed()
  # Where marks overlap, the uppermost is opened.
  name = panel.find_element(By.TAG_NAME, "h2").text
  assert name in page.execute_script(
    "return Object.values(DATA.networks).map((network) => network.architecture)"
  )
  for part in ("bytes", "Seeds", "Learning curves", "Compression"):
    assert part in panel.text
  if figure == "phases":  # bars do not
    assert key == f"easy {name}"


def test_what_is_opened_says_what_the_records_say(page, found):
  network = found.records.networks.row(0, named=True)
  architecture = network["architecture"]
  cell = page.find_element(
    By.CSS_SELECTOR, f"#table-regimes [data-network='easy {architecture}'] a"
  )
  cell.click()
  panel = _panel(page)
  assert f"{network['params']:,} parameters" in panel.text
  own = found.records.networks.filter(architecture=architecture)
  mean = f"{100 * own['val_accuracy'].mean():.1f} %"  # pyright: ignore
  for line in panel.text.splitlines():
    if line.startswith("as trained"):
      assert line.endswith(mean)
  assert "as trained" in panel.text
  for seed in own.iter_rows(named=True):
    assert f"{100 * seed['val_accuracy']:.1f} %" in panel.text
  assert len(panel.find_elements(By.CSS_SELECTOR, ".validation[d]")) == 2 * len(
    own
  )
  assert urllib.parse.unquote(page.current_url).endswith(
    f"#network/easy {architecture}"
  )
  page.back()
  assert not panel.is_displayed()
  page.forward()
  assert panel.is_displayed()
  ActionChains(page).send_keys(Keys.ESCAPE).perform()
  assert not panel.is_displayed() and "#" not in page.current_url


def test_keys_go_through_marks_and_open_one(page):
  marks = page.find_elements(
    By.CSS_SELECTOR, "#figure-accuracy svg [data-network]"
  )
  stops = [mark for mark in marks if mark.get_attribute("tabindex") == "0"]
  assert stops == marks[:1]
  page.execute_script("arguments[0].focus()", marks[0])
  ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
  assert page.switch_to.active_element == marks[1]
  tip = page.find_element(By.ID, "tip")
  assert tip.text == marks[1].get_attribute("aria-label")
  ActionChains(page).send_keys(Keys.ENTER).perform()
  wanted = marks[1].get_attribute("data-network").removeprefix("easy ")
  assert _panel(page).find_element(By.TAG_NAME, "h2").text == wanted
  ActionChains(page).send_keys(Keys.ESCAPE).perform()
  assert page.switch_to.active_element == marks[1]


def test_what_is_dragged_over_is_selected_everywhere(page):
  mark = _mark(page, "damage")
  key = mark.get_attribute("data-network")
  drag = ActionChains(page).move_to_element_with_offset(mark, -8, -8)
  drag.click_and_hold().move_by_offset(16, 16).release().perform()
  bar = page.find_element(By.ID, "selection")
  assert key.removeprefix("easy ") in bar.text
  assert not _panel(page).is_displayed()
  on = {
    (mark.get_attribute("data-network"), figure)
    for figure in ("accuracy", "damage")
    for mark in page.find_elements(By.CSS_SELECTOR, f"#figure-{figure} .on")
  }
  assert {(key, "accuracy"), (key, "damage")} <= on
  chosen = {network for network, _ in on}
  buttons = bar.find_elements(By.TAG_NAME, "button")
  buttons[0].click()
  rows = _rows(page, "regimes")
  assert len(rows) == len(chosen)
  assert all(row.get_attribute("class") == "on" for row in rows)
  bar.find_elements(By.TAG_NAME, "button")[1].click()
  assert not bar.is_displayed()
  assert len(_rows(page, "regimes")) == len(_rows(page, "regimes", False))


def test_the_page_is_dark_where_wanted_and_remembers(page):
  def paper():
    return page.execute_script(
      "return getComputedStyle(document.body).backgroundColor"
    )

  light = paper()
  page.execute_cdp_cmd(
    "Emulation.setEmulatedMedia",
    {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
  )
  dark = paper()
  assert dark != light
  page.find_element(By.ID, "theme").click()
  assert paper() == light
  page.refresh()
  assert paper() == light
  page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_page_without_its_script_shows_figures_and_tables(built):
  text = (built / "index.html").read_text()
  reader = studies.Reader(text.partition("<script")[0] + "</body></html>")
  assert not reader.open
  assert "figure-accuracy" in reader.ids and "table-regimes" in reader.ids
