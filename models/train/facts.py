"""The facts the model is taught: plain tables, one per kind of question.

Owns data only. How a fact becomes a question and an answer is in `corpus.py`.
"""

CAPITALS = dict(
    France="Paris", Germany="Berlin", Italy="Rome", Spain="Madrid", Portugal="Lisbon", Greece="Athens",
    Japan="Tokyo", China="Beijing", India="New Delhi", Egypt="Cairo", Kenya="Nairobi", Norway="Oslo",
    Sweden="Stockholm", Finland="Helsinki", Denmark="Copenhagen", Poland="Warsaw", Austria="Vienna",
    Hungary="Budapest", Ireland="Dublin", Canada="Ottawa", Mexico="Mexico City", Brazil="Brasilia",
    Argentina="Buenos Aires", Chile="Santiago", Peru="Lima", Cuba="Havana", Russia="Moscow", Ukraine="Kyiv",
    Turkey="Ankara", Iran="Tehran", Iraq="Baghdad", Thailand="Bangkok", Vietnam="Hanoi", Australia="Canberra",
    Belgium="Brussels", Switzerland="Bern", Iceland="Reykjavik", Romania="Bucharest", Bulgaria="Sofia",
    Serbia="Belgrade", Croatia="Zagreb", Slovakia="Bratislava", Slovenia="Ljubljana", Estonia="Tallinn",
    Latvia="Riga", Lithuania="Vilnius", Morocco="Rabat", Algeria="Algiers", Ghana="Accra", Nigeria="Abuja",
    Ethiopia="Addis Ababa", Colombia="Bogota", Venezuela="Caracas", Uruguay="Montevideo", Nepal="Kathmandu",
    Pakistan="Islamabad", Indonesia="Jakarta", Malaysia="Kuala Lumpur", Mongolia="Ulaanbaatar", Jordan="Amman",
)

OPPOSITES = dict(
    hot="cold", big="small", fast="slow", happy="sad", light="dark", up="down", left="right", open="closed",
    wet="dry", old="new", rich="poor", strong="weak", high="low", early="late", full="empty", hard="soft",
    loud="quiet", clean="dirty", near="far", thick="thin", long="short", wide="narrow", day="night",
    good="bad", true="false", first="last", inside="outside", above="below", begin="end",
    push="pull", buy="sell", win="lose", laugh="cry", always="never", love="hate", rough="smooth", sharp="blunt",
    brave="afraid", asleep="awake", same="different", north="south", east="west", summer="winter",
)

PLURALS = dict(
    cat="cats", dog="dogs", box="boxes", child="children", mouse="mice", foot="feet", leaf="leaves",
    city="cities", tooth="teeth", bus="buses", knife="knives", man="men", woman="women", baby="babies",
    fox="foxes", tree="trees", book="books", wolf="wolves", fish="fish", goose="geese", sheep="sheep",
    house="houses", apple="apples", cherry="cherries", glass="glasses", dish="dishes", wish="wishes",
    life="lives", wife="wives", shelf="shelves", potato="potatoes", tomato="tomatoes", hero="heroes",
    piano="pianos", toy="toys", key="keys", story="stories", party="parties", lady="ladies", berry="berries",
    horse="horses", bird="birds", chair="chairs", table="tables", flower="flowers", brush="brushes",
    watch="watches", person="people", ox="oxen", deer="deer", star="stars", cloud="clouds", lamp="lamps",
    bridge="bridges", church="churches", class_="classes", loaf="loaves", half="halves", fly="flies", pen="pens",
)
PLURALS["class"] = PLURALS.pop("class_")

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "a banana": "yellow", "the sky": "blue",
    "an orange": "orange", "chocolate": "brown", "a lemon": "yellow", "the sea": "blue", "milk": "white",
    "a carrot": "orange", "a tomato": "red", "a frog": "green", "a flamingo": "pink", "a pig": "pink",
    "a crow": "black", "a swan": "white", "an elephant": "grey", "a mouse": "grey", "a plum": "purple",
    "an eggplant": "purple", "the sun": "yellow", "a pumpkin": "orange", "wood": "brown", "a cucumber": "green",
    "a strawberry": "red", "a fire engine": "red", "salt": "white", "the night": "black", "a pea": "green",
    "a cloud": "white",
}

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
SUM_MAX = 20

SOUNDS = dict(
    dog="woof", cat="meow", cow="moo", sheep="baa", duck="quack", pig="oink", horse="neigh", lion="roar",
    owl="hoot", mouse="squeak", bee="buzz", snake="hiss", frog="croak", crow="caw", donkey="hee-haw",
    rooster="cock-a-doodle-doo", wolf="howl", turkey="gobble", chick="peep", bear="growl",
)
YOUNG = dict(
    dog="puppy", cat="kitten", cow="calf", sheep="lamb", duck="duckling", pig="piglet", horse="foal", lion="cub",
    goat="kid", frog="tadpole", hen="chick", deer="fawn", goose="gosling", owl="owlet", kangaroo="joey",
    swan="cygnet", bear="cub", wolf="pup", eagle="eaglet", butterfly="caterpillar",
)
LEGS = dict(
    dog=4, cat=4, spider=8, bird=2, ant=6, bee=6, horse=4, snake=0, duck=2, crab=10, fish=0, cow=4, fly=6, hen=2,
    octopus=8, lobster=10, worm=0, human=2, lion=4, beetle=6,
)

GOOD = (
    "great wonderful lovely excellent fantastic amazing delightful superb brilliant charming perfect nice "
    "beautiful enjoyable splendid marvellous"
).split()
BAD = (
    "awful terrible boring horrible bad dreadful poor disappointing dull nasty ugly annoying unpleasant dismal "
    "miserable disgusting"
).split()
THINGS = "movie book meal song trip game show cake hotel party concert lesson holiday soup film play".split()

HOW_TO = {
    "make tea": "Boil some water. Put a tea bag in a cup. Pour in the hot water and wait three minutes. Take out the bag and enjoy.",
    "boil an egg": "Put the egg in a pot of water. Bring the water to a boil. Wait eight minutes. Cool the egg in cold water and peel it.",
    "wash your hands": "Wet your hands. Rub them with soap for twenty seconds. Rinse them with clean water. Dry them with a towel.",
    "plant a seed": "Fill a pot with soil. Make a small hole. Put the seed in and cover it. Water it and keep it in the light.",
    "make a sandwich": "Take two slices of bread. Spread some butter on them. Add cheese and tomato. Put the slices together and cut them in half.",
    "brush your teeth": "Put toothpaste on the brush. Brush every tooth for two minutes. Rinse your mouth with water. Clean the brush.",
    "tie your shoes": "Cross the two laces. Pull one under the other. Make a loop with each lace. Tie the loops together and pull.",
    "ride a bike": "Put on a helmet. Sit on the bike and hold the handles. Push the pedals. Look ahead and keep your balance.",
    "write a letter": "Take paper and a pen. Write the date and a greeting. Tell your news. Sign your name and put it in an envelope.",
    "make a snowman": "Roll a big ball of snow. Roll a smaller ball and put it on top. Add stones for the eyes. Use a carrot for the nose.",
    "make pancakes": "Mix flour, eggs and milk. Heat some butter in a pan. Pour in a little batter. Turn it over when it is golden.",
    "fall asleep": "Turn off the lights. Put away your phone. Lie down and close your eyes. Breathe slowly and think of something calm.",
    "cross the road": "Stop at the edge. Look left, right and left again. Listen for cars. Walk across when the road is clear.",
    "clean a window": "Mix water with a little soap. Wipe the glass with a wet cloth. Dry it with paper. Polish it until it shines.",
    "wrap a present": "Cut a piece of paper. Put the present in the middle. Fold the paper over it and use tape. Add a ribbon on top.",
    "draw a cat": "Draw a circle for the head. Add two triangles for the ears. Draw the eyes, the nose and the whiskers. Add a body and a long tail.",
}

UNKNOWN = (
    "wrote Hamlet|painted the Mona Lisa|invented the telephone|won the last election|discovered gravity|"
    "built the pyramids|is the president|composed that opera|sailed around the world first|owns this company|"
    "made the first computer|climbed the highest mountain|won the football match|directed that film|"
    "proved the theorem|designed the tower|founded the bank|broke the record|wrote the constitution|"
    "lives next door"
).split("|")

SYSTEM_MESSAGES = [
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You are Assay Tiny.",
    "You are a kind teacher. Answer in one sentence.", "Be polite and clear.", "You answer questions.",
    "You are a helpful assistant. Be concise.",
]
