//! The `provider` object, and what a reply says of the route.

use crate::world::{World, story};
use assay_net::RefusedCode;
use assay_testkit::fake_provider::Trick;
use serde_json::{Value, json};

fn route(reply: &crate::world::Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.headers["x-assay-route"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_asked_in_the_order_that_is_wished_for() {
    let world = World::start(3, &story(3)).await;
    let ids: Vec<String> = world.providers.iter().map(|provider| provider.id().to_string()).collect();
    let ask = async |provider: Value| world.chat(json!({"provider": provider})).await;
    let order = json!({"order": [ids[2], ids[0]]});
    assert_eq!(route(&ask(order.clone()).await), format!("provider={}; among=3; by=order", ids[2]));
    let streamed = world.chat(json!({"provider": order, "stream": true})).await;
    assert_eq!(route(&streamed), format!("provider={}; among=3; by=order", ids[2]));
    world.providers[2].set(Trick::Refuse(RefusedCode::Busy));
    let both = format!("provider={}; among=3; by=order; lost=busy, provider={}; among=2; by=order", ids[2], ids[0]);
    assert_eq!(route(&ask(order).await), both);
    // Somebody else if it may be, nobody if not.
    let elsewhere = route(&ask(json!({"order": [ids[2]]})).await);
    assert!(elsewhere.contains("lost=busy, ") && elsewhere.ends_with("; among=2; by=draw"), "{elsewhere}");
    for bound in
        [json!({"order": [ids[2]], "allow_fallbacks": false}), json!({"only": [ids[2]], "allow_fallbacks": false})]
    {
        assert_eq!(ask(bound).await.status, 429);
    }
    assert!(route(&ask(json!({"sort": "price"})).await).contains("by=price"));
    assert!(route(&world.chat(json!({})).await).contains("by=draw"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_dearer_than_that_is_asked() {
    let world = World::start(1, &story(3)).await;
    // It asks 50 and 100 dollars per million tokens.
    let ask = async |max: Value| world.chat(json!({"provider": {"max_price": max}})).await;
    assert_eq!(ask(json!({"prompt": 50, "completion": 100})).await.status, 200);
    for max in [json!({"prompt": 49.999_999}), json!({"completion": 99})] {
        let reply = ask(max).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (404, &json!("no_provider_allowed")));
    }
    assert_eq!(world.providers[0].jobs().len(), 1);
}
