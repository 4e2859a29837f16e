"""What an icon's name says once the marks of its set are taken off: the thing, its role, whether it is a logo.

Icon sets decorate names: `file-type-rust`, `brand-rust`, `logo-rust`, `rust-original-wordmark` and `rust-24-filled` all
name Rust. Everything here is a pure function of (set, category, tags, name).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pycountry

LOGO_CATEGORIES = ("Logos", "Programming")  # iconify's categories whose sets draw brands
# Sets of those categories that draw other things, or things and brands without telling them apart.
NOT_LOGO_SETS = frozenset({"codicon", "nonicons", "gcp", "k8s"})
LOGO_SETS = frozenset(
    {"fa-brands", "fa6-brands", "fa7-brands", "academicons", "brandico", "bxl", "cib", "entypo-social", "unjs"}
)
TICKER_SETS = frozenset({"token", "token-branded", "cryptocurrency", "cryptocurrency-color"})
FLAG_SETS = frozenset({"circle-flags", "flag", "flagpack", "cif"})  # their names are ISO codes
LOGO_TAG = re.compile(r"\b(brands?|logos?)\b", re.IGNORECASE)
FOLDER = re.compile(r"^(folder-type|folder)-(?=.)")
LOGO_PREFIX = re.compile(r"^(brand|logo|logos|social|file-type|filetype|brands)-(?=.)")
SKIN = re.compile(r"(-(medium-light|medium-dark|light|medium|dark)-skin-tone)+")
FLUENT_SKIN = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")
FLAG_NAME = re.compile(r"^(?:flag-for-flag|flag-for|flag)-(.+)$")
FLAG_CODE = re.compile(r"^([a-z]{2})(-(?!1x1|4x3)[a-z0-9]{2,3})?(-(?:1x1|4x3))?$")

STYLE_WORDS = """
    outline outlined outlines filled fill solid line linear bold broken duotone twotone duo light thin regular
    rounded sharp round color colour flat remix freehand stroke loop block small alt variant thick expressive
    alerted badged 10 12 14 15 16 20 24 28 32 48 64 10px 12px 14px 16px 20px 24px 28px 32px 48px
"""
STYLE = frozenset(STYLE_WORDS.split())
STYLE_PREFIX = frozenset({"baseline", "outline", "twotone", "sharp", "round", "rounded"})  # of Google's `ic`
LOGO_STYLE_WORDS = """
    logo logotype icon brand wordmark original plain dark square circle rect background opened open badge legacy
    mono monochrome mark symbol white black box rectangle
"""
LOGO_STYLE = STYLE | frozenset(LOGO_STYLE_WORDS.split())
FRAMES = frozenset(
    {"square", "circle", "box", "rect", "rectangle", "alt", "logo", "brand", "icon", "f", "o", "negative"}
)
JAVASCRIPT_WORDS = "vue next nuxt three ember backbone d3 chart moment alpine nest gatsby knex adonis electron p5 rx"
ALIASES = {
    "gcloud": "googlecloud", "gcp": "googlecloud", "aws": "amazonwebservices", "amazonaws": "amazonwebservices",
    "golang": "go", "k8s": "kubernetes", "postgres": "postgresql", "cplusplus": "cpp", "cplus": "cpp",
    "materialui": "mui", "vscode": "visualstudiocode", "msedge": "microsoftedge", "edge": "microsoftedge",
    "chrome": "googlechrome", "chromium": "chromium", "firefox": "firefoxbrowser", "mozillafirefox": "firefoxbrowser",
    "outlook": "microsoftoutlook", "excel": "microsoftexcel", "msexcel": "microsoftexcel", "mysqldb": "mysql",
    "msword": "microsoftword", "powerpoint": "microsoftpowerpoint", "mspowerpoint": "microsoftpowerpoint",
    "photoshop": "adobephotoshop", "illustrator": "adobeillustrator", "indesign": "adobeindesign",
    "aftereffects": "adobeaftereffects", "premiere": "adobepremierepro", "premierepro": "adobepremierepro",
    "adobepremiere": "adobepremierepro", "lightroom": "adobelightroom", "xd": "adobexd", "mongo": "mongodb",
    "bootstrap5": "bootstrap", "css3": "css", "html5": "html", "openapiinitiative": "openapi",
    "drive": "googledrive", "gmail": "gmail", "maps": "googlemaps", "gitlabfull": "gitlab", "facebookf": "facebook",
    "linkedinin": "linkedin", "mediumm": "medium", "redditalien": "reddit", "snapchatghost": "snapchat",
    "twitterx": "x", "xtwitter": "x", "newtwitter": "x", "tailwind": "tailwindcss", "sass": "sass", "scss": "sass",
    "oraclecloud": "oracle", "springboot": "spring", "reactjs": "react", "expressjs": "express",
    "shell": "bash", "gnubash": "bash", "freecodecamporg": "freecodecamp", "playstation4": "playstation",
    "googleplus": "googleplus", "gplus": "googleplus", "youtubeplay": "youtube", "stumbleuponing": "stumbleupon",
    "dotnetcore": "dotnet", "net": "dotnet", "netcore": "dotnet", "discordapp": "discord",
    "whatsappbusiness": "whatsapp",
    "vkontakte": "vk", "weixin": "wechat", "sinaweibo": "weibo", "yarnpkg": "yarn", "apachekafka": "kafka",
    "apachespark": "spark", "apacheairflow": "airflow", "apachecassandra": "cassandra", "apachemaven": "maven",
    "apachehadoop": "hadoop", "apacheflink": "flink", "apachetomcat": "tomcat", "apacheant": "ant",
} | {name: f"{name}js" for name in JAVASCRIPT_WORDS.split()}  # fmt: skip

# Brands that more sets draw under a bare name than mark as logos; found by reading the entities that both do.
BRAND_WORDS = """
    android behance bitcoin bluetooth css dribbble facebook github google html instagram javascript linkedin
    pinterest reddit slack spotify telegram tiktok twitch twitter vimeo whatsapp youtube amazon appstore
    googlechrome googleplus gemini internetexplorer ie paypal quora wordpress nintendoswitch picasa uservoice
    chromecast angellist creativecommons creativecommonsby creativecommonsnc creativecommonsnd creativecommonssa
    creativecommonszero delicious ethereum gg pinboard slideshare stumbleupon googlewallet openhands firstorder
    fortawesome piedpiper forrst discord dropbox figma skype flickr tumblr soundcloud yahoo yelp steam xbox
    playstation ubuntu linux snapchat wechat weibo qq messenger gitlab bitbucket stackoverflow codepen nodejs
    python typescript react vuejs angular medium trello digg lastfm foursquare evernote opera firefoxbrowser
    mastercard visa americanexpress dribble deviantart blogger skypeforbusiness onedrive googledrive icloud
    airbnb uber netflix patreon productht producthunt openai chatgpt claude huggingface
"""
BRANDS = frozenset(BRAND_WORDS.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What a name says. `words` is the thing in the set's own spelling; `role` is plain, wordmark or folder."""

    words: tuple[str, ...]
    role: str
    logo: bool
    country: str | None
    ticker: bool


def read_name(icon_set: str, category: str | None, tags: Sequence[str], name: str) -> Named:
    """Take the marks of its set off a name."""
    if country := country_of(icon_set, name):
        return Named(
            words=("flag", "of", *country.lower().split()), role="plain", logo=False, country=country, ticker=False
        )
    if icon_set in TICKER_SETS:
        words = tuple(w for w in name.split("-") if w != "background") or (name,)
        return Named(words=words, role="plain", logo=False, country=None, ticker=True)
    name = name.replace("two-tone", "twotone")
    logo = is_logo(icon_set, category, tags, name)
    role = "folder" if FOLDER.match(name) and category == "Programming" else "plain"
    if "wordmark" in name.split("-") or name.endswith("-text"):
        role = "wordmark"
    bare = FOLDER.sub("", name) if role == "folder" else name
    bare = LOGO_PREFIX.sub("", bare) if logo else SKIN.sub("", bare)
    if icon_set.startswith("fluent-emoji"):
        bare = FLUENT_SKIN.sub("", bare)
    words = strip_style(
        bare.split("-"), LOGO_STYLE if logo else STYLE, numbers=not logo or icon_set.startswith("streamline")
    )
    if logo and len(words) > 1 and words[0] in ("square", "circle"):  # Font Awesome's square-github
        words = words[1:]
    if icon_set == "ic" and len(words) > 1 and words[0] in STYLE_PREFIX:
        words = words[1:]
    if icon_set == "reicon":  # numbers its variants without a dash
        words = (*words[:-1], re.sub(r"(?<=[a-z])\d$", "", words[-1]))
    return Named(words=words, role=role, logo=logo, country=None, ticker=False)


def strip_style(words: Sequence[str], style: frozenset[str], *, numbers: bool) -> tuple[str, ...]:
    """Drop what a name ends in without naming another thing: style words and, if asked, a variant's number."""
    words = list(words)
    while len(words) > 1 and (words[-1] in style or (numbers and re.fullmatch(r"\d{1,2}", words[-1]))):
        words.pop()
    if len(words) > 1 and words[-1] == "with":  # github-with-circle
        words.pop()
    return tuple(words)


def is_logo(icon_set: str, category: str | None, tags: Sequence[str], name: str) -> bool:
    """Return whether the set itself says that the picture is a logo."""
    if icon_set in LOGO_SETS or (category in LOGO_CATEGORIES and icon_set not in NOT_LOGO_SETS):
        return True
    if re.search(r"(^(brand|logo)-|-(logo|brand|logotype)(-|$))", name):
        return True
    if name.startswith("social-") and icon_set in ("simple-line-icons", "foundation", "stash", "eos-icons"):
        return True
    return any(LOGO_TAG.search(tag) for tag in tags)


def country_of(icon_set: str, name: str) -> str | None:
    """Return the country or region whose flag this is, in one spelling, or None where it is no such flag."""
    if icon_set in FLAG_SETS:
        match = FLAG_CODE.match(name)
        if match is None:
            return name.replace("-", " ")
        return region_name(match[1], (match[2] or "").strip("-"))
    match = FLAG_NAME.match(name)
    if match and (found := find_country(match[1].replace("-", " "))):
        return found
    return None


def region_name(code: str, part: str) -> str:
    """Return the name of an ISO 3166 country, or of its part."""
    if part and (sub := pycountry.subdivisions.get(code=f"{code}-{part}".upper())):
        return str(sub.name).lower()
    country = pycountry.countries.get(alpha_2=code.upper())
    return f"{_short(country)} {part}".strip() if country else f"{code} {part}".strip()


def find_country(words: str) -> str | None:
    """Return the one spelling of a country that emoji sets name in words, or None."""
    plain = words.replace("st ", "saint ").replace(" and ", " ")
    return _BY_WORDS.get(_letters(plain))


def entity_of(words: Sequence[str], *, logo: bool) -> str:
    """Return the entity's id: the letters and digits of the words, so that spacing and case do not matter.

    Aliases are for logos alone: the thing drawn as `edge` or `drive` in a set of interface icons is no browser.
    """
    joined = "".join(words)
    # Simple Icons spells punctuation out: nodedotjs, vuedotjs.
    joined = re.sub(r"dot(?=(js|io|ai|com|org|net|dev|app|sh)$)", "", joined)
    return ALIASES.get(joined, joined) if logo else joined


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def _short(country: object) -> str:
    name = getattr(country, "common_name", None) or getattr(country, "name", "")
    return re.sub(r",.*| \(.*", "", name).lower()


_BY_WORDS = {
    _letters(spelling.replace(" and ", " ").replace("St. ", "Saint ")): _short(country)
    for country in pycountry.countries
    for spelling in {
        country.name,
        getattr(country, "common_name", country.name),
        re.sub(r",.*| \(.*", "", country.name),
    }
}
