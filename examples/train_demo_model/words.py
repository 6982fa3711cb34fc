"""Word lists that the synthetic conversations draw from."""

from __future__ import annotations


def split_words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a text, or what stands between its separators, line breaks forgotten."""
    pieces = text.split(separator)
    return tuple(" ".join(piece.split()) for piece in pieces)


NOUNS = split_words(
    """
    apple bread river stone cloud lamp chair table horse tiger eagle snake paper pencil window
    garden forest mountain island ocean desert bridge castle tower market school doctor farmer
    painter singer writer soldier king queen prince dragon robot rocket planet comet moon star
    engine wheel hammer ladder bottle basket blanket pillow mirror candle clock watch camera phone
    radio piano guitar violin drum flute ticket letter stamp coin wallet jacket shirt button pocket
    shoe glove scarf hat pear plum cherry lemon orange banana grape melon peach berry carrot onion
    potato tomato pepper garlic rice pasta cheese butter honey sugar salt coffee tea milk juice
    water wine soup salad cake cookie sandwich rabbit mouse kitten puppy goat sheep cow duck goose
    swan owl crow fox wolf bear whale shark crab spider ant bee butterfly rose tulip daisy oak pine
    maple leaf root seed branch storm thunder rain snow wind fire smoke shadow silver gold iron
    copper glass wood cotton silk leather brick sand clay marble village city harbor station
    airport train plane boat truck bicycle road path corner square circle number letter sentence
    story poem song dance game puzzle riddle joke secret dream idea plan budget invoice report
    meeting project team client server database network kernel compiler function variable module
    package library token tensor matrix vector graph tree queue stack buffer cache thread process
    file folder branch commit merge review test
    """
)
ADJECTIVES = split_words(
    """
    red green blue yellow black white small large tall short young old new fast slow warm cold
    bright dark quiet loud happy sad brave clever gentle proud rich poor clean dirty heavy light
    soft hard sweet bitter sour fresh dry wet empty full open closed early late simple strange
    famous hidden ancient modern round flat sharp smooth rough
    """
)
VERBS = split_words(
    """
    add find build read write send open close move copy load save parse count sort merge split
    update delete create fetch check print draw show start stop run test clean pack sum scan join
    filter map reduce format encode decode render resize rotate
    """
)
NAMES = split_words(
    """
    Anna Ben Carla David Elena Felix Grace Hugo Ines Jonas Kim Lena Maria Nina Omar Paul Rosa Sam
    Tina Victor Yuki Zoe Ali Chen Ivan Lucas Emma Mia Noah Sofia Leo Clara Max Julia Tom Eva Amir
    Priya Diego Marta Olga Peter Sara Nora Liam Ada Alan Linus Mei Hana
    """
)
SYLLABLES = split_words(
    """
    ba be bo ca ce co da de do fa fe fi ga go gu ha he hi jo ka ke ki ko la le li lo ma me mi mo na
    ne ni no pa pe pi po qua ra re ri ro sa se si so ta te ti to tu va ve vi vo wa we wi xa ya yo
    za ze zi zo bra cro dri fla gre plo sto tri
    """
)
TOPICS = split_words(
    """
    quantum physics|the French revolution|black holes|photosynthesis|the stock market|
    climate change|football|chess openings|the Roman empire|neural networks|cooking pasta|
    gardening|jazz music|Shakespeare|the Second World War|vaccines|inflation|
    electric cars|machine learning|the solar system|dinosaurs|the human brain|volcanoes|
    poetry|philosophy|democracy|the internet|blockchain|yoga|marathon training|
    Japanese history|Python decorators|Rust lifetimes|sorting algorithms|databases|
    operating systems|linear algebra|calculus|probability|DNA|evolution|gravity|
    the speed of light|the Eiffel tower|Mozart|Picasso|Einstein|Marie Curie|Napoleon|
    Cleopatra|the Great Wall|Mount Everest|the Amazon river|penguins|cats|dogs|whales|
    bees|wine|coffee|tea|chocolate|bread baking|vegan food|the moon landing|
    space travel|artificial intelligence|robots|video games|movies|the Olympics|tennis|
    swimming|cycling|hiking|camping|photography|fashion|architecture|economics|
    psychology|sociology|law|medicine|nutrition|sleep|meditation|happiness|love|
    friendship|family|work|money|taxes|insurance|real estate|travel|hotels|airplanes|
    trains|ships|bridges|MLX|Apple Silicon|a haiku|my homework|this sentence|life|
    the universe|fractions|prime numbers|the weather in general|time zones|history|art
    """,
    "|",
)


def words() -> tuple[str, ...]:
    return NOUNS + ADJECTIVES + VERBS
