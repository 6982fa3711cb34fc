"""Cities and their IANA time zones."""

from words import split_words

_ZONES = """
Africa/Cairo: Cairo
Africa/Casablanca: Casablanca
Africa/Johannesburg: Johannesburg
Africa/Lagos: Lagos
Africa/Nairobi: Nairobi
America/Anchorage: Anchorage
America/Argentina/Buenos_Aires: Buenos Aires
America/Bogota: Bogota
America/Chicago: Chicago, Houston
America/Denver: Denver
America/Havana: Havana
America/Lima: Lima
America/Los_Angeles: Los Angeles, San Francisco, Seattle
America/Mexico_City: Mexico City
America/New_York: New York, Boston, Miami
America/Santiago: Santiago
America/Sao_Paulo: Sao Paulo
America/Toronto: Toronto
America/Vancouver: Vancouver
Asia/Bangkok: Bangkok
Asia/Dhaka: Dhaka
Asia/Dubai: Dubai
Asia/Hong_Kong: Hong Kong
Asia/Jakarta: Jakarta
Asia/Kathmandu: Kathmandu
Asia/Kolkata: Delhi, Mumbai
Asia/Manila: Manila
Asia/Seoul: Seoul
Asia/Shanghai: Shanghai, Beijing
Asia/Singapore: Singapore
Asia/Taipei: Taipei
Asia/Tehran: Tehran
Asia/Tokyo: Tokyo, Osaka
Atlantic/Reykjavik: Reykjavik
Australia/Melbourne: Melbourne
Australia/Perth: Perth
Australia/Sydney: Sydney
Europe/Amsterdam: Amsterdam
Europe/Athens: Athens
Europe/Berlin: Berlin, Munich, Hamburg
Europe/Brussels: Brussels
Europe/Budapest: Budapest
Europe/Copenhagen: Copenhagen
Europe/Dublin: Dublin
Europe/Helsinki: Helsinki
Europe/Istanbul: Istanbul
Europe/Kyiv: Kyiv
Europe/Lisbon: Lisbon
Europe/London: London
Europe/Madrid: Madrid, Barcelona
Europe/Moscow: Moscow
Europe/Oslo: Oslo
Europe/Paris: Paris
Europe/Prague: Prague
Europe/Rome: Rome, Milan
Europe/Stockholm: Stockholm
Europe/Vienna: Vienna
Europe/Warsaw: Warsaw
Europe/Zurich: Zurich, Geneva
Pacific/Auckland: Auckland
Pacific/Honolulu: Honolulu
"""
_LINES = [line.split(": ") for line in _ZONES.strip().splitlines()]

ZONE_OF = {city: zone for zone, cities in _LINES for city in cities.split(", ")}
CITIES = tuple(ZONE_OF)
ZONES = tuple(dict.fromkeys(ZONE_OF.values()))
"""Zones the model knows; any other is copied when the user writes it out."""
OTHER_ZONES = ("Etc/UTC", "Europe/Sofia", "Asia/Tashkent", "America/Phoenix", "Pacific/Fiji")
"""More places whose weather may be asked for."""
TOWNS = split_words(
    """
    Lyon Porto Bergen Graz Basel Cork Leeds Bristol York Nice Turin Naples Seville Valencia Malaga
    Ghent Delft Aarhus Malmo Tampere Tartu Riga Vilnius Krakow Brno Sofia Varna Split Dallas Austin
    Portland Phoenix Detroit Calgary Quito Cusco Cali Salvador Rabat Tunis Accra Dakar Kampala
    Lusaka Hanoi Kyoto Nagoya Busan Pune Goa Hobart Darwin Wellington Suva
    """
)
