use serde_json::json;

use super::*;

fn read(fields: &Value) -> Result<v1::Anchor, String> {
    let object = fields.as_object().unwrap();
    Mapping::default().anchor(object.iter().map(|(key, value)| (key.as_str(), value.clone())))
}

#[track_caller]
fn refused(fields: Value, expected: &str) {
    assert_eq!(read(&fields).unwrap_err(), expected);
}

#[test]
fn what_was_written_is_read_back() {
    let fields = json!({
        "latitude": 47.5, "longitude": -0.25, "height_m": 12.5, "orientation": [0.0, 0.0, 1.0, 0.0],
        "horizontal_accuracy_m": 0.5, "tags": ["b", "a"], "properties": {"tags": "x", "floor": "3"},
        "expire_time": "2030-01-01T00:00:00Z", "creator": "me", "quality": 0.5,
    });
    let anchor = read(&fields).unwrap();
    let record = serde_json::to_value(AnchorRecord::from(anchor.clone())).unwrap();
    assert_eq!(read(&record).unwrap(), anchor);
    assert_eq!(record["tags"], json!(["a", "b"]));
    assert_eq!(record["expire_time"], "2030-01-01T00:00:00Z");
}

#[test]
fn a_local_pose_is_read_back() {
    let fields = json!({"space": 7, "x_m": 1.5, "y_m": -2.0, "z_m": 0.0});
    let anchor = read(&fields).unwrap();
    let record = AnchorRecord::from(anchor.clone());
    assert_eq!(record.space, Some(7));
    assert_eq!(read(&serde_json::to_value(record).unwrap()).unwrap(), anchor);
}

#[test]
fn text_will_do_for_numbers_and_unknown_names_become_properties() {
    let anchor =
        read(&json!({"LAT": " 1.5", "lng": "2", "floor": 3, "open": true, "note": "", "no": null}))
            .unwrap();
    let record = AnchorRecord::from(anchor);
    assert_eq!((record.latitude, record.longitude), (Some(1.5), Some(2.0)));
    let expected = [("floor", "3"), ("open", "true")];
    assert_eq!(record.properties, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn renames_constants_and_tags_of_the_mapping_are_applied() {
    let mapping = Mapping {
        renames: [("breite".to_owned(), "latitude".to_owned())].into(),
        properties: [("source".to_owned(), "test".to_owned())].into(),
        tags: vec!["t".to_owned()],
    };
    let fields = [("breite", json!("1")), ("lon", json!("2")), ("tags", json!("u; t;"))];
    let record = AnchorRecord::from(mapping.anchor(fields.into_iter()).unwrap());
    assert_eq!(record.latitude, Some(1.0));
    assert_eq!(record.tags, ["t", "u"]);
    assert_eq!(record.properties["source"], "test");
}

#[test]
fn every_kind_of_bad_field_is_named() {
    refused(json!({"longitude": 1}), "latitude is missing");
    refused(json!({"latitude": 1}), "longitude is missing");
    refused(
        json!({"name": "x"}),
        "there is no position: give latitude and longitude, or space, x_m, y_m and z_m",
    );
    refused(json!({"lat": "north", "lon": 1}), "lat \"north\" is not a number");
    refused(json!({"lat": 91, "lon": 1}), "lat 91 is outside [-90, 90]");
    refused(json!({"lat": "NaN", "lon": 1}), "lat NaN is outside [-90, 90]");
    refused(json!({"lat": 1, "lon": "1e3"}), "lon 1000 is outside [-180, 180]");
    refused(
        json!({"lat": 1, "lon": 1, "height": -20000}),
        "height -20000 is outside [-11000, 100000]",
    );
    refused(
        json!({"lat": 1, "latitude": 1, "lon": 1}),
        "\"latitude\" gives a field that was given before",
    );
    refused(
        json!({"lat": 1, "lon": 1, "orientation": "up"}),
        "orientation \"up\" is not a quaternion [x, y, z, w]",
    );
    refused(
        json!({"lat": 1, "lon": 1, "orientation": "[0, 0, 0, 2]"}),
        "orientation [0,0,0,2] has the norm 2, not 1",
    );
    refused(
        json!({"lat": 1, "lon": 1, "expire_time": "tomorrow"}),
        "expire_time \"tomorrow\" is not a time such as 2027-01-31T12:00:00Z",
    );
    refused(json!({"lat": 1, "lon": 1, "quality": 2}), "quality 2 is outside [0, 1]");
    refused(json!({"lat": 1, "lon": 1, "creator": 5}), "creator \"5\" is not text");
    refused(json!({"lat": 1, "lon": 1, "properties": "{"}), "properties is not a JSON object");
    refused(
        json!({"space": 1.5, "x_m": 1, "y_m": 1, "z_m": 1}),
        "a local position needs a whole space number, x_m, y_m and z_m",
    );
    refused(
        json!({"lat": 1, "lon": 1, "space": 1}),
        "give latitude and longitude, or a local position, not both",
    );
}

#[test]
fn what_exceeds_the_limits_of_the_api_is_refused_before_it_is_sent() {
    refused(
        json!({"lat": 1, "lon": 1, "note": "x".repeat(5_000)}),
        "properties of 5004 bytes, at most 4096 allowed",
    );
    refused(
        json!({"lat": 1, "lon": 1, "k".repeat(200): "x"}),
        &format!("property name {:?} is not 1 to 128 bytes long", "k".repeat(200)),
    );
    let many: Vec<String> = (0..40).map(|tag| format!("t{tag}")).collect();
    refused(json!({"lat": 1, "lon": 1, "tags": many}), "40 tags, at most 32 allowed");
    refused(
        json!({"lat": 1, "lon": 1, "tags": "t".repeat(65)}),
        &format!("tag {:?} is longer than 64 bytes", "t".repeat(65)),
    );
    let mut fields = json!({"lat": 1, "lon": 1});
    for property in 0..70 {
        fields[format!("p{property}")] = json!("x");
    }
    refused(fields, "70 properties, at most 64 allowed");
}
