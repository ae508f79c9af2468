"""Goals and sentences: the figures of the analyser's calibration are fitted to `FITTED`; `HELD_OUT` has other goals,
to see that they carry over (no figure was fitted to it, though its misses were read).

Each sentence stands under the goal that it means; those off topic mean none of them, and the last few of each share a
word with a goal.
"""

from __future__ import annotations

from planner.cards import Card
from planner.catalogue import Catalogue
from planner.features import Feature, Port
from planner.goals import Goal


def goal(name: str, takes: Feature, gives: str, description: str, *examples: str) -> Goal:
    port = takes.type.split("/")[0]
    return Goal(name, (Port(port, takes),), (Port("answer", Feature(gives, "INT64")),), description, examples)


PIXELS = Feature("image/digit", "FP32", (8, 8))
PHOTO = Feature("image/photo", "UINT8", (-1, -1, 3))
TEXT = Feature("text/en", "BYTES")
TABLE_13 = Feature("table/wine", "FP64", (13,))
TABLE_30 = Feature("table/cells", "FP64", (30,))
TABLE_4 = Feature("table/flower", "FP64", (4,))

FITTED = Catalogue.of(
    cards=(
        Card(
            "svm-digits",
            "1",
            (Port("image", PIXELS),),
            (Port("label", Feature("label/digit", "INT64")),),
            description="Support vector machine that recognises scanned numerals from 0 to 9",
        ),
        Card(
            "vines",
            "1",
            (Port("table", TABLE_13),),
            (Port("label", Feature("label/cultivar/italian", "INT64")),),
            description="Random forest over alcohol, ash, magnesium and other chemistry",
        ),
    ),
    goals=(
        goal(
            "read-digit",
            PIXELS,
            "label/digit",
            "Read a handwritten digit from an 8x8 image.",
            "which digit is this",
            "read the number written in this picture",
        ),
        goal(
            "wine-cultivar",
            TABLE_13,
            "label/cultivar",
            "Tell the cultivar of a wine from its chemical analysis.",
            "which grape variety is this wine made from",
            "classify the wine",
        ),
        goal(
            "diagnose-tumour",
            TABLE_30,
            "label/tumour",
            "Say whether a breast tumour is malignant or benign from measurements of its cell nuclei.",
            "is this tumour malignant",
            "diagnose breast cancer",
        ),
        goal(
            "iris-species",
            TABLE_4,
            "label/species",
            "Name the species of an iris flower from its sepal and petal sizes.",
            "what kind of iris is it",
        ),
        goal(
            "text-language",
            TEXT,
            "label/language",
            "Detect the language a text is written in.",
            "which language is this",
            "is this French or German",
        ),
        goal(
            "review-sentiment",
            TEXT,
            "label/sentiment",
            "Tell whether a customer review is positive or negative.",
            "how does the customer feel about the product",
        ),
    ),
)

FITTED_CLEAR = {
    "read-digit": (
        "what digit is in the image",
        "read this handwritten digit please",
        "recognise the handwritten number",
        "which number did somebody write here",
        "can you tell me the digit in this scan?",
        "digit recognition",
        "READ DIGIT",
        "reed the hanwritten diggit",
        "a digit written by hand: which one is it",
        "recognise numerals",
        "I need to know the digits on these pictures",
    ),
    "wine-cultivar": (
        "what cultivar is this wine",
        "tell me the wine variety from the chemistry",
        "identify the grape of this wine",
        "wine classification",
        "from which cultivar does the wine come?",
        "wich cultivr is this wnie",
        "chemical analysis of wine, which grape",
        "predict the wine's cultivar",
    ),
    "diagnose-tumour": (
        "is the tumor benign?",
        "does the patient have breast cancer",
        "malignant or benign",
        "diagnosis of the breast tumour",
        "classify this tumor as malignant or benign",
        "is this lump cancerous",
        "tumuor diagnosis",
        "cell nuclei measurements: is it cancer?",
    ),
    "iris-species": (
        "what species of iris is this flower",
        "identify the iris",
        "which iris species has these petals and sepals",
        "iris flowr speices",
        "from petal length and sepal width, name the flower",
        "tell me what kind of flower this is",
        "classify iris flowers",
    ),
    "text-language": (
        "what language is this text",
        "in which language is this written",
        "language detection",
        "detect langauge",
        "identify the language of the sentence",
        "is it written in German",
        "tell me the tongue of this text",
    ),
    "review-sentiment": (
        "is this review positive",
        "sentiment of the review",
        "does the customer like the product",
        "positive or negative review?",
        "is the client happy with the product",
        "what is the mood of this customer review",
        "reveiw sentimnet",
    ),
}

FITTED_OFF_TOPIC = (
    "book me a flight",
    "book a flight to Paris tomorrow",
    "what is the weather like today",
    "asdf qwer",
    "hello",
    "play some music",
    "who won the football match last night",
    "how tall is the Eiffel tower",
    "order a pizza with extra cheese",
    "turn off the lights in the kitchen",
    "what time is it",
    "set an alarm for seven",
    "lorem ipsum dolor sit amet",
    "xkcd zzzz 12345",
    "what is the capital of France",
    "tell me a joke",
    "convert 10 dollars to euros",
    "drop table users",
    "please help me",
    "what is this",
    "classify this",
    "predict something from the data",
    "show me the way to the station",
    "I love you",
    "where can I buy a car",
    "read me a story",
    "is it raining",
    "detect the faces in this photo",
    "write an email to my boss",
    "the quick brown fox jumps over the lazy dog",
    "call my mother",
    "what is the meaning of life",
    "the wind blows along the shore",
    "recommend a film",
    # these share a word with a goal
    "order a bottle of wine",
    "is there a wine bar near the station",
    "show me an image of a cat",
    "which programming language should I learn next",
    "buy flowers for my mother on Sunday",
    "write a review of the new restaurant",
    "how many cells does the human body have",
    "call customer service about my broken phone",
    "my phone number has changed, update my account",
    "three",
)

HELD_OUT = Catalogue.of(
    cards=(
        Card(
            "gradient-boosted-churn",
            "3",
            (Port("table", Feature("table/account", "FP64", (9,))),),
            (Port("label", Feature("label/churn", "INT64")),),
            description="Boosted trees over tenure, contract and monthly charges",
            examples=("who is about to cancel the contract",),
        ),
    ),
    goals=(
        goal(
            "predict-churn",
            Feature("table/account", "FP64", (9,)),
            "label/churn",
            "Predict whether a customer will leave the service.",
            "is this customer going to churn",
            "will the subscriber quit",
        ),
        goal(
            "detect-fraud",
            Feature("table/payment", "FP64", (29,)),
            "label/fraud",
            "Detect fraudulent credit card transactions.",
            "is this payment fraud",
            "flag suspicious card payments",
        ),
        goal(
            "traffic-sign",
            PHOTO,
            "label/sign",
            "Recognise traffic signs in photos taken from a car.",
            "which road sign is this",
            "what does the street sign say",
        ),
        goal(
            "crop-disease",
            PHOTO,
            "label/disease",
            "Find out which disease a plant has from a photo of a leaf.",
            "what is wrong with my tomato plant",
            "diagnose the sick leaf",
        ),
        goal(
            "spam-filter",
            TEXT,
            "label/spam",
            "Tell whether an email is spam.",
            "is this message junk",
        ),
        goal(
            "house-price",
            Feature("table/house", "FP64", (8,)),
            "value/price",
            "Estimate the price of a house from its location, age and number of rooms.",
            "how much is my home worth",
        ),
        goal(
            "summarise-news",
            TEXT,
            "text/summary",
            "Write a short summary of a news article.",
            "shorten this article",
        ),
        goal(
            "heart-risk",
            Feature("table/patient", "FP64", (11,)),
            "value/risk",
            "Assess the risk of heart disease from blood pressure, cholesterol and age.",
            "how likely is a heart attack",
        ),
    ),
)

HELD_OUT_CLEAR = {
    "predict-churn": (
        "will this customer leave us",
        "churn prediction",
        "is the client about to quit the service",
        "which customers are going to cancel their contract",
        "predct custmer chrun",
        "is this subscriber leaving?",
    ),
    "detect-fraud": (
        "is this credit card transaction fraudulent",
        "fraud detection",
        "find suspicious transactions",
        "was this payment a fraud?",
        "check the card payment for fraud",
        "detect fruad in credti card payments",
    ),
    "traffic-sign": (
        "what traffic sign is in the picture",
        "recognize the road sign",
        "which sign stands at the street",
        "trafic sing recognition",
        "read the street sign in this photo",
        "identify traffic signs",
    ),
    "crop-disease": (
        "which disease does this plant have",
        "my tomato leaf looks sick",
        "identify the disease on the leaf",
        "is my plant ill, here is a photo of its leaf",
        "plant desease from leaf photo",
        "diagnose my tomato plant",
    ),
    "spam-filter": (
        "is this email spam",
        "spam detection",
        "is that mail junk or not",
        "filter the spam out of my messages",
        "check whether this mesage is spam",
        "junk mail?",
    ),
    "house-price": (
        "estimate the house price",
        "how much is this house worth",
        "price of a home with five rooms",
        "predict house prices",
        "what does a house at this location cost",
        "hosue price estimaet",
    ),
    "summarise-news": (
        "summarise this article",
        "give me a summary of the news",
        "short summary of the article please",
        "make this news article shorter",
        "sumarize the news",
        "summary of this news story",
    ),
    "heart-risk": (
        "what is the risk of a heart attack",
        "heart disease risk",
        "assess the patient's heart",
        "risk from blood pressure and cholesterol",
        "how likely is heart disease",
        "hart attack risk",
    ),
}

HELD_OUT_OFF_TOPIC = (
    "book me a hotel room",
    "sing a song",
    "qwertz uiop",
    "what's the score of the game",
    "translate this into Spanish",
    "what is two plus two",
    "tell me about the Roman empire",
    "remind me to buy milk",
    "open the garage door",
    "how do I cook rice",
    "is there life on Mars",
    "find a restaurant nearby",
    "when does the train leave",
    "good morning",
    "what should I wear",
    "compress this folder",
    "generate a password",
    "who wrote Hamlet",
    "which one is it",
    "detect it",
    "estimate the number",
    "blah blah blah",
    "select * from goals",
    "how many people live in Japan",
    "recognise the speaker's voice",
    "segment the lungs in this x-ray",
    "solve the equation",
    "what is the stock market doing",
    "my dog ate my homework",
    "navigate to the airport",
    "water my plant every second Sunday",
    "sell my house and move to Spain",
    "sign the contract and send it to my lawyer",
    "pay the electricity bill with my credit card",
    "send an email to Anna about the party",
    "my heart belongs to you",
    "switch the traffic light in the game to green",
    "read the news aloud",
)
