//! Filters for clients that poll, and parts of blocks by position.

mod setup;

use alloy_primitives::keccak256;
use assay_chain::EmbeddedChain;
use assay_types::Amount;
use serde_json::{Value, json};
use setup::{World, key};

fn ask(chain: &EmbeddedChain, method: &str, params: Value) -> Value {
    chain.dispatch(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
}

fn changes(chain: &EmbeddedChain, id: &Value) -> Vec<Value> {
    ask(chain, "eth_getFilterChanges", json!([id])).as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_answers_what_is_new_once() {
    let world = World::start().await;
    let chain = &world.chain;
    let transfer = keccak256("Transfer(address,address,uint256)");
    world.faucet.token.mint(key(2).address(), Amount(1)).await.unwrap();
    let logs = ask(chain, "eth_newFilter", json!([{"address": world.addresses().token, "topics": [transfer]}]));
    let others = ask(chain, "eth_newFilter", json!([{"address": world.addresses().registry}]));
    let blocks = ask(chain, "eth_newBlockFilter", json!([]));
    let pending = ask(chain, "eth_newPendingTransactionFilter", json!([]));
    for id in [&logs, &others, &blocks, &pending] {
        assert_eq!(changes(chain, id), Vec::<Value>::new(), "nothing before the filter was made");
    }

    let mut receipts = Vec::new();
    for amount in 2..=4 {
        receipts.push(world.faucet.token.mint(key(2).address(), Amount(amount)).await.unwrap());
    }
    let found = changes(chain, &logs);
    let hashes: Vec<_> = found.iter().map(|log| log["transactionHash"].clone()).collect();
    assert_eq!(hashes, receipts.iter().map(|receipt| json!(receipt.transaction_hash)).collect::<Vec<_>>());
    assert_eq!(found[2]["data"], json!(format!("0x{:064x}", 4)));
    assert_eq!(changes(chain, &others), Vec::<Value>::new());
    let found = changes(chain, &blocks);
    assert_eq!(found, receipts.iter().map(|receipt| json!(receipt.block_hash)).collect::<Vec<_>>());
    let found = changes(chain, &pending);
    assert_eq!(found, receipts.iter().map(|receipt| json!(receipt.transaction_hash)).collect::<Vec<_>>());
    for id in [&logs, &blocks, &pending] {
        assert_eq!(changes(chain, id), Vec::<Value>::new(), "once");
    }
    // All that fit the filter in its own range, which is the latest block.
    assert_eq!(ask(chain, "eth_getFilterLogs", json!([logs])).as_array().unwrap().len(), 1);

    assert_eq!(ask(chain, "eth_uninstallFilter", json!([logs])), json!(true));
    assert_eq!(ask(chain, "eth_uninstallFilter", json!([logs])), json!(false));
    for (method, id) in [("eth_getFilterChanges", &logs), ("eth_getFilterLogs", &logs), ("eth_getFilterLogs", &blocks)]
    {
        let error = chain.dispatch(method, json!([id])).unwrap_err();
        assert!(error.code == -32000 && error.message.contains("filter not found"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_keep_to_their_range_and_are_bounded() {
    let world = World::start().await;
    let chain = &world.chain;
    let head = chain.head().unwrap().0;
    let hex = |number: u64| format!("{number:#x}");
    let range = json!({"address": world.addresses().token, "fromBlock": hex(head + 2), "toBlock": hex(head + 3)});
    let id = ask(chain, "eth_newFilter", json!([range]));
    let mut seen = Vec::new();
    for amount in 1..=5u128 {
        world.faucet.token.mint(key(2).address(), Amount(amount)).await.unwrap();
        seen.extend(changes(chain, &id).iter().map(|log| log["blockNumber"].clone()));
    }
    assert_eq!(seen, [json!(hex(head + 2)), json!(hex(head + 3))]);
    let error = chain.dispatch("eth_newFilter", json!([{"blockHash": chain.head().unwrap().1}])).unwrap_err();
    assert_eq!(error.code, -32602);

    // The one that was asked for least recently makes room.
    let keep = ask(chain, "eth_newBlockFilter", json!([]));
    for _ in 0..300 {
        ask(chain, "eth_newBlockFilter", json!([]));
        changes(chain, &keep);
    }
    assert!(chain.dispatch("eth_getFilterChanges", json!([id])).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_found_by_their_place_in_a_block() {
    let world = World::start().await;
    let chain = &world.chain;
    let receipt = world.faucet.token.mint(key(2).address(), Amount(1)).await.unwrap();
    let (hash, number) = (receipt.block_hash.unwrap(), format!("{:#x}", receipt.block_number.unwrap()));
    let by_hash = ask(chain, "eth_getTransactionByHash", json!([receipt.transaction_hash]));
    let places = [
        ("eth_getTransactionByBlockHashAndIndex", json!(hash)),
        ("eth_getTransactionByBlockNumberAndIndex", json!(number)),
    ];
    for (method, block) in places {
        assert_eq!(ask(chain, method, json!([block, "0x0"])), by_hash);
        assert_eq!(ask(chain, method, json!([block, "0x1"])), Value::Null);
    }
    assert_eq!(ask(chain, "eth_getTransactionByBlockNumberAndIndex", json!(["0xffffff", "0x0"])), Value::Null);
    assert_eq!(ask(chain, "eth_getBlockTransactionCountByHash", json!([hash])), json!("0x1"));
    assert_eq!(ask(chain, "eth_getBlockTransactionCountByNumber", json!([number])), json!("0x1"));
    assert_eq!(ask(chain, "eth_getBlockTransactionCountByNumber", json!(["0xffffff"])), Value::Null);
}
