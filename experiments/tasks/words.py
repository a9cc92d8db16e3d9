"""The words that the tasks share; where each list comes from is in SOURCES.md."""

# John and Mary sit at indices 0 and 5, so that `held_out` keeps their pair out of training.
NAMES = (
    ("John", "he"), ("Sarah", "she"), ("David", "he"), ("Laura", "she"), ("James", "he"),
    ("Mary", "she"), ("Robert", "he"), ("Emily", "she"), ("Daniel", "he"), ("Rachel", "she"),
    ("Thomas", "he"), ("Lisa", "she"), ("Paul", "he"), ("Amy", "she"), ("Mark", "he"),
    ("Angela", "she"),
)  # fmt: skip
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
ADJECTIVES = ("tall", "old", "young", "kind", "happy", "tired", "famous", "quiet")

# (singular, plural)
PEOPLE = (
    ("athlete", "athletes"), ("aunt", "aunts"), ("boy", "boys"), ("carpenter", "carpenters"),
    ("doctor", "doctors"), ("farmer", "farmers"), ("father", "fathers"), ("friend", "friends"),
    ("girl", "girls"), ("guy", "guys"), ("kid", "kids"), ("lawyer", "lawyers"),
    ("man", "men"), ("mother", "mothers"), ("poet", "poets"), ("singer", "singers"),
    ("teacher", "teachers"), ("uncle", "uncles"), ("victim", "victims"), ("woman", "women"),
)  # fmt: skip
OTHER_PEOPLE = (
    ("guard", "guards"), ("chef", "chefs"), ("architect", "architects"), ("skater", "skaters"),
    ("dancer", "dancers"), ("minister", "ministers"), ("driver", "drivers"),
    ("assistant", "assistants"), ("executive", "executives"), ("parent", "parents"),
)  # fmt: skip
THINGS = (
    ("bike", "bikes"), ("car", "cars"), ("cat", "cats"), ("chair", "chairs"), ("desk", "desks"),
    ("dog", "dogs"), ("table", "tables"), ("tree", "trees"), ("truck", "trucks"),
    ("window", "windows"),
)  # fmt: skip
VERBS = (
    ("greets", "greet"), ("admires", "admire"), ("avoids", "avoid"), ("knows", "know"),
    ("remembers", "remember"), ("observes", "observe"), ("praises", "praise"),
    ("calls", "call"), ("follows", "follow"), ("visits", "visit"), ("likes", "like"),
    ("hates", "hate"),
)  # fmt: skip
SAYING = ("says", "say")
PREPOSITIONS = ("behind", "beside", "near")

EVENTS = (
    "war", "contract", "plan", "marriage", "campaign", "siege", "dynasty", "voyage", "expedition",
    "trial",
)  # fmt: skip
CENTURIES = tuple(str(century) for century in range(11, 20))
YEARS = tuple(f"{year:02d}" for year in range(100))

# country: (capital, other cities)
COUNTRIES = {
    "France": ("Paris", ("Lyon", "Marseille", "Lille", "Nantes", "Bordeaux", "Nice", "Toulouse")),
    "Italy": ("Rome", ("Bologna", "Genoa", "Palermo", "Pisa", "Siena", "Trieste", "Bari")),
    "Spain": ("Madrid", ("Seville", "Valencia", "Granada", "Malaga", "Murcia", "Cadiz", "Vigo")),
    "Germany": ("Berlin", ("Leipzig", "Dortmund", "Essen", "Bonn", "Mainz", "Kassel", "Stuttgart")),
    "Japan": ("Tokyo", ("Osaka", "Kyoto", "Kobe", "Nagoya", "Sapporo", "Sendai", "Nagasaki")),
    "China": ("Beijing", ("Shanghai", "Wuhan", "Harbin", "Shenzhen", "Dalian", "Xiamen", "Lhasa")),
    "Russia": ("Moscow", ("Kazan", "Samara", "Omsk", "Sochi", "Pskov", "Tula", "Murmansk")),
    "Brazil": ("Brasilia",
               ("Recife", "Manaus", "Curitiba", "Belem", "Goiania", "Olinda", "Macapa")),
    "Canada": ("Ottawa",
               ("Montreal", "Calgary", "Edmonton", "Quebec", "Regina", "Windsor", "Banff")),
    "Turkey": ("Ankara", ("Istanbul", "Izmir", "Antalya", "Bursa", "Konya", "Adana", "Trabzon")),
    "Nigeria": ("Abuja", ("Ibadan", "Kaduna", "Calabar", "Enugu", "Ilorin", "Sokoto", "Zaria")),
    "Norway": ("Oslo", ("Trondheim", "Stavanger", "Narvik", "Bodo", "Hamar", "Molde", "Drammen")),
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Every name, without its pronoun."""
    return tuple(name for name, _ in NAMES)


def cities() -> tuple[tuple[str, str], ...]:
    """Every city that is not a capital, with its country."""
    return tuple((city, country) for country, (_, others) in COUNTRIES.items() for city in others)


def nouns() -> tuple[str, ...]:
    """Common nouns in the singular, of every list."""
    pairs = (*PEOPLE, *OTHER_PEOPLE, *THINGS)
    return (*(singular for singular, _ in pairs), *PLACES, *OBJECTS, *EVENTS)


def content_words() -> tuple[str, ...]:
    """Every word that names, describes or acts; years and grammatical words are left out."""
    pairs = (*PEOPLE, *OTHER_PEOPLE, *THINGS, *VERBS)
    return (
        *names(),
        *PLACES,
        *OBJECTS,
        *ADJECTIVES,
        *(word for pair in pairs for word in pair),
        *EVENTS,
        *COUNTRIES,
        *(capital for capital, _ in COUNTRIES.values()),
        *(city for city, _ in cities()),
    )
