"""The Config: rules of every field, flags of every field, what identifies."""

import dataclasses
import os
import re
import subprocess
import sys

from absl import flags
import pytest

from minarch_jax import config, records, registries
from minarch_jax import flags as config_flags
from minarch_jax.config import Config, ConfigError

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
RULES = {
  name: rules
  for name, field in FIELDS.items()
  if (rules := field.metadata["rules"])
}


def holding(name, item):
  """The item as the field would hold it."""
  return (item,) if isinstance(FIELDS[name].default, tuple) else item


def test_defaults_obey_their_own_rules():
  assert Config().check() == Config()


def test_a_config_is_a_value():
  assert hash(Config()) == hash(Config())
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().num_seeds = 3  # pyright: ignore


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is(name):
  assert FIELDS[name].metadata["help"].endswith(".")


# --- rules -------------------------------------------------------------------

BOUNDS = [
  (name, rule)
  for name, rules in RULES.items()
  for rule in ("low", "high", "below")
  if rule in rules
]


@pytest.mark.parametrize("name, rule", BOUNDS)
def test_bounds_are_inclusive_but_below(name, rule):
  bound = RULES[name][rule]
  step = 1 if isinstance(bound, int) else 1e-6 * (abs(bound) or 1.0)
  beyond = bound - step if rule == "low" else bound + step
  if rule == "below":
    beyond = bound
  else:
    others = {}
    if name == "validation_fraction":  # that of a single fold
      others = {"folds": 1}
    if name.startswith("slurm_"):
      others = {"executor": "slurm"}
    found = Config().replace(**others, **{name: holding(name, bound)})
    assert getattr(found, name) == holding(name, bound)
  with pytest.raises(ConfigError, match=f"--{name}=.*{bound}"):
    Config().replace(**{name: holding(name, beyond)})


@pytest.mark.parametrize("name", [n for n in RULES if "choices" in RULES[n]])
def test_choices_are_taken_and_others_refused_with_the_nearest(
  name, monkeypatch
):
  # As if every package were installed.
  monkeypatch.setattr(config.importlib.util, "find_spec", str)
  for choice in config.choices_of(RULES[name]):
    Config().replace(**{name: holding(name, choice)})
    with pytest.raises(ConfigError) as error:
      Config().replace(**{name: holding(name, choice + "x")})
    message = str(error.value)
    assert f"--{name}={choice}x is not one of" in message
    assert "did you mean" in message


LIVE = {
  "families": registries.FAMILIES,
  "criteria": registries.CRITERIA,
  "scopes": registries.SCOPES,
  "granularities": registries.GRANULARITIES,
  "quantizers": registries.FORMATS,
  "convolution": registries.CONVOLUTIONS,
}


@pytest.mark.parametrize("name", LIVE)
def test_a_name_that_is_registered_later_can_be_chosen(name, monkeypatch):
  changes = {name: holding(name, "toy")}
  with pytest.raises(ConfigError, match=f"--{name}=toy is not one of"):
    Config().replace(**changes)
  # What it stands for is not looked up, but a family is asked for its grids.
  family = "minarch_jax.architectures.dnn:FAMILY"
  monkeypatch.setitem(
    LIVE[name], "toy", family if name == "families" else "nowhere:TOY"
  )
  assert getattr(Config().replace(**changes), name) == changes[name]


def test_a_grid_of_any_family_can_be_chosen(monkeypatch):
  dnn = registries.FAMILIES["dnn"]
  grown = dataclasses.replace(dnn, grids={**dnn.grids, "toy": lambda shape: []})
  monkeypatch.setitem(registries.FAMILIES, "dnn", grown)
  assert Config().replace(grid="toy").grid == "toy"
  monkeypatch.undo()
  with pytest.raises(ConfigError, match="--grid=toy is not one of"):
    Config().replace(grid="toy")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value):
  for name, field in FIELDS.items():
    if isinstance(field.default, float):
      with pytest.raises(ConfigError, match=f"--{name}="):
        Config().replace(**{name: value})


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"bits": (32, 0)}, "--bits=0 is not one of 32, 8, 7, 6, 5, 4, 3, 2"),
    ({"sparsities": (1.5,)}, "--sparsities=1.5 must be below 1.0"),
    ({"families": ("dnn", "cmn")}, "--families=cmn .* did you mean 'cnn'"),
    ({"families": ()}, "--families is empty"),
    ({"sparsities": ()}, "--sparsities is empty"),
    ({"activation_bits": (1,)}, "--activation_bits=1 is not one of 32, 8"),
    ({"activation_bits": (8, 8)}, "--activation_bits names a value twice"),
    ({"activation_bits": ()}, "--activation_bits is empty"),
    ({"bits": ()}, "--bits is empty"),
    ({"quantizers": ()}, "--quantizers is empty"),
    ({"criteria": ()}, "--criteria is empty"),
    ({"scopes": ()}, "--scopes is empty"),
    ({"scopes": ("global", "global")}, "--scopes names a value twice"),
    ({"architectures": ("dnn:3", "cn:3")}, "--architectures: .*'cn:3'"),
    ({"num_seed": 3}, "unknown option 'num_seed'; did you mean 'num_seeds'"),
  ],
)
def test_wrong_values_name_value_and_remedy(changes, message):
  with pytest.raises(ConfigError, match=message):
    Config().replace(**changes)


def test_replace_changes_only_what_is_named():
  changed = Config().replace(num_seeds=2)
  assert changed.num_seeds == 2
  assert changed.replace(num_seeds=Config.num_seeds) == Config()


def test_seeds_are_consecutive():
  assert list(Config(first_seed=3, num_seeds=2).seeds) == [3, 4]


# --- flags -------------------------------------------------------------------


@pytest.fixture
def parse(monkeypatch):
  """Defines flags in a fresh registry and parses a command line."""

  def parse(*arguments, names=()):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind in ("boolean", "integer", "float", "list", "string"):
      define = getattr(flags, f"DEFINE_{kind}")
      monkeypatch.setattr(
        config_flags.flags,
        f"DEFINE_{kind}",
        lambda *a, define=define: define(*a, flag_values=values),
      )
    config_flags.define(*names)
    values(["program", *arguments])
    monkeypatch.undo()
    monkeypatch.setattr(flags, "FLAGS", values)
    return config_flags.read()

  return parse


def test_without_flags_the_config_is_the_default(parse):
  assert parse() == Config()


def test_every_field_can_be_given_as_a_flag(parse):
  def other(name, field):
    default, rules = field.default, RULES.get(name, {})
    if name == "architectures":
      return ("dnn:3", "cnn:4-4")
    if isinstance(default, tuple):
      return default[-1:]
    if isinstance(default, bool):
      return not default
    if "choices" in rules:
      return config.choices_of(rules)[-1]
    if isinstance(default, int | float):
      most = rules.get("high", default + 1)
      return rules["low"] if default != rules["low"] else most
    return "elsewhere"

  of_ray = ("ray_address", "worker_tpus")  # the last executor is another
  changes = {
    name: other(name, field)
    for name, field in FIELDS.items()
    if name not in of_ray
  }
  arguments = [
    f"--{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
    for name, v in changes.items()
  ]
  assert parse(*arguments) == Config(**changes)


def test_a_binary_may_define_some_flags_only(parse):
  found = parse("--eps_sigma=0.1", names=("out", "eps_sigma"))
  assert found == Config(eps_sigma=0.1)
  with pytest.raises(flags.UnrecognizedFlagError):
    parse("--num_seeds=3", names=("out",))


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--sparsities=0.1,a", "--sparsities=0.1,a is not a list of numbers"),
    ("--bits=8,4.5", "--bits=8,4.5 is not a list of integers"),
    ("--bits=0", "--bits=0 is not one of"),
    ("--activation_bits=8,b", "--activation_bits=8,b is not a list of int"),
    ("--activation_bits=32,12", "--activation_bits=12 is not one of"),
    (
      "--quantizers=nf4,bflaot16",
      "--quantizers=bflaot16 is not one of absmax, "
      ".*nf4, .*; did you mean 'bfloat16'",
    ),
    ("--grid=papr", "--grid=papr is not one of .* did you mean 'paper'"),
  ],
)
def test_flags_are_checked(parse, argument, message):
  with pytest.raises(ConfigError, match=message):
    parse(argument)


# --- several data sets -------------------------------------------------------


def test_every_data_set_has_its_configuration(parse):
  config = parse("--datasets=digits,digits:blurred")
  assert config.datasets == ("digits", "digits:blurred")
  first, second = config.each()
  assert (first.dataset, second.dataset) == config.datasets
  assert not (first.datasets or second.datasets)
  assert config.replace(datasets=()) == first == first.check()
  assert first.each() == (first,)
  assert config.on_each(lambda part: part.dataset) == list(config.datasets)


def test_an_error_says_on_which_data_set():
  def refuse(part):
    if part.dataset == "b":
      raise ConfigError("--batch_size=9 is too large")
    return part.dataset

  both = Config(datasets=("a", "b"))
  with pytest.raises(ConfigError, match="^--datasets, b: --batch_size=9 is"):
    both.on_each(refuse)
  with pytest.raises(ConfigError, match="^--batch_size=9 is too large"):
    Config(dataset="b").on_each(refuse)


def test_one_flag_names_the_data_sets(parse):
  with pytest.raises(
    ConfigError, match="--datasets=a,b stands instead of --dataset=mnist"
  ):
    parse("--datasets=a,b", "--dataset=mnist")
  assert parse("--datasets=a,b", "--dataset=digits").datasets == ("a", "b")
  with pytest.raises(ConfigError, match="--datasets names a value twice"):
    parse("--datasets=a,a")


def test_help_names_the_variants_that_are_registered(parse, monkeypatch):
  monkeypatch.setitem(registries.VARIANTS, "turned", "nowhere:turned")
  parse(names=("dataset",))
  help = flags.FLAGS["dataset"].help
  assert help.endswith(" May end in: :blurred, :noisy, :turned.")


def test_help_in_brief_names_every_flag_once_and_fits_a_screen(parse):
  parse()
  text = config_flags.briefly()
  hosts = ("distributed", *config_flags.Hosts._fields)
  assert sorted(re.findall(r"--(\w+)", text)) == sorted([*FIELDS, *hosts])
  lines = text.splitlines()
  assert len(lines) <= 34 and max(map(len, lines)) <= 79
  starts = [list(FIELDS).index(name) for name in config_flags.GROUPS]
  assert starts[0] == 0 and starts == sorted(starts)
  for group in config_flags.GROUPS.values():
    assert any(line.startswith(f"{group} ") for line in lines)


# --- identity ----------------------------------------------------------------

# Written out once more: a field that changes its role changes identities.
ROLES = {
  "threshold": (
    *("eps_accuracy", "eps_sigma", "max_failed", "chance_level"),
    *("chance_margin", "overfit_rise", "learnable", "free_margin"),
    *("equivalence_margin", "match_tolerance", "rapid_gain"),
    *("saturation_margin", "collapse_share", "governing_share"),
    *("sharp_decades", "depth_effect", "damage_effect"),
    *("claimed_redundancy", "confidence", "num_bootstrap"),
  ),
  "training": (
    *("num_epochs", "batch_size", "init", "optimizer", "learning_rate"),
    "schedule",
    *("warmup_fraction", "weight_decay", "momentum", "compute_dtype"),
  ),
  "retraining": (
    "finetune_share",
    "finetune_learning_rate",
    "retraining_rounds",
  ),
}


def test_roles_are_what_they_were():
  found = {
    "threshold": config.THRESHOLDS,
    "training": config.TRAINING,
    "retraining": config.RETRAINING,
  }
  assert found == ROLES
  places = {name for name, f in FIELDS.items() if f.metadata["role"] == "place"}
  assert places == set(config.PLACES) and "executor" in places
  roles = {field.metadata["role"] for field in FIELDS.values()}
  assert roles == {"", "place", *ROLES}


def test_the_recipe_is_what_decides_training():
  recipe = Config().recipe()
  assert recipe.keys() == set(config.TRAINING)
  for name in config.TRAINING:
    default = getattr(Config(), name)
    rules = RULES.get(name, {})
    choices = config.choices_of(rules)
    value = choices[-1] if choices else default / 2 + 1
    if value == default:
      value = choices[0]
    other = dataclasses.replace(Config(), **{name: value}).recipe()
    assert records.content_id(other) != records.content_id(recipe), name


def test_where_and_how_judged_is_not_in_the_recipe():
  machine = {"out", "device_map", "seed_mapping", "member_mapping"}
  machine |= {"convolution", "memory_limit", "compilation_cache_dir", "dry_run"}
  machine |= {"repair"}
  assert not machine & set(config.TRAINING)
  assert not set(config.THRESHOLDS) & set(config.TRAINING)
  assert set(config.THRESHOLDS) | set(config.TRAINING) <= FIELDS.keys()


# --- what it costs -----------------------------------------------------------

HEAVY = {
  "jax",
  "jaxlib",
  "numpy",
  "scipy",
  "polars",
  "flax",
  "sklearn",
  "etils",
}
LIGHT = ("config", "flags", "registries", "architectures")


@pytest.mark.parametrize("module", LIGHT)
def test_nothing_heavy_is_loaded_to_check_a_flag(module):
  program = (
    f"import sys, minarch_jax.{module}\n"
    "from minarch_jax import config\n"
    "try: config.Config().replace(grid='papr', architectures=('dnn:3',))\n"
    "except ValueError: pass\n"
    "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  loaded = set(done.stdout.split())
  assert "minarch_jax" in loaded and not HEAVY & loaded


# --- places ------------------------------------------------------------------


def test_a_directory_to_be_made_is_writable_and_left_unmade(tmp_path):
  config.check_writable(str(tmp_path / "a" / "b"))
  assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(ConfigError, match=f"--out={tmp_path}/a/b: .*not a dir"):
    config.check_writable(str(tmp_path / "a" / "b"))


def test_a_link_to_nowhere_is_named(tmp_path):
  (tmp_path / "a").symlink_to(tmp_path / "gone")
  with pytest.raises(ConfigError, match="not a directory"):
    config.check_writable(str(tmp_path / "a"))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")
def test_a_directory_nobody_may_write_is_named():
  # Trying tells; permissions alone do not stop a privileged user.
  with pytest.raises(ConfigError, match="cannot write in /proc .*another dir"):
    config.check_writable("/proc/results")
