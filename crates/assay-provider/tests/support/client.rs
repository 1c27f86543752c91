//! The paying side, as a gateway does it: one purse for a channel, any number of connections.

use super::{LONG, PRICES, TOKEN, addresses, provider_key};
use alloy_signer::SignerSync;
use assay_chain::{NetworkAddresses, PrivateKeySigner};
use assay_net::{
    ChannelReport, ChannelRequest, ClientFrame, Connection, Done, NetError, Open, Pay, ProviderFrame, ReceiptReport,
    Refused, Route, Sockets, connect,
};
use assay_protocol::{PayerChannel, PayerState, ReceiptExpectation, StreamTerms};
use assay_types::{
    Amount, B256, ChannelConfig, ChannelId, Finish, Job, ProviderId, RequestHash, Signature, SignedOffer,
    SignedVoucher, TokenId, TokenLogprobs, Voucher, receipt_domain, settlement_domain,
};
use std::sync::{Arc, Mutex};

/// A channel to the provider of these tests.
#[derive(Clone)]
pub struct Channel {
    pub config: ChannelConfig,
    pub payer: PrivateKeySigner,
    pub network: NetworkAddresses,
}

impl Channel {
    pub fn new(payer: &PrivateKeySigner, salt: u8) -> Self {
        let config = ChannelConfig {
            payer: payer.address(),
            payer_authorizer: payer.address(),
            receiver: provider_key().address(),
            receiver_authorizer: provider_key().address(),
            token: TOKEN,
            withdraw_delay: 86_400,
            salt: B256::repeat_byte(salt),
        };
        Self { config, payer: payer.clone(), network: addresses() }
    }

    pub fn id(&self) -> ChannelId {
        self.config.id(&settlement_domain(self.network.chain_id, self.network.settlement))
    }

    pub fn voucher(&self, ceiling: Amount) -> SignedVoucher {
        let voucher = Voucher { channel_id: self.id(), max_claimable_amount: ceiling };
        let digest = voucher.digest(&settlement_domain(self.network.chain_id, self.network.settlement));
        let signature = self.payer.sign_hash_sync(&digest).unwrap();
        SignedVoucher { voucher, signature: Signature::new(&signature) }
    }
}

/// A channel and what was promised on it.
pub struct Wallet {
    pub channel: Channel,
    pub purse: Mutex<PayerChannel>,
}

impl Wallet {
    pub fn new(channel: Channel, deposit: u128) -> Self {
        let state = PayerState { deposit: Amount(deposit), ..PayerState::default() };
        Self { channel, purse: Mutex::new(PayerChannel::new(state)) }
    }

    pub fn charged_total(&self) -> u128 {
        self.purse.lock().unwrap().state().charged_total.0
    }
}

pub struct Client {
    pub connection: Connection,
    pub wallet: Arc<Wallet>,
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    pub output: Vec<TokenId>,
    /// Of each output token, if the job asked.
    pub scores: Vec<TokenLogprobs>,
    /// Output tokens of each checkpoint.
    pub checkpoints: Vec<u64>,
    pub done: Done,
}

/// A job that was accepted.
pub struct Opened {
    pub job: Job,
    pub request: RequestHash,
    pub terms: StreamTerms,
    pub output: Vec<TokenId>,
    pub scores: Vec<TokenLogprobs>,
    pub checkpoints: Vec<u64>,
}

impl Client {
    pub async fn connect(route: impl Into<Route>, wallet: Arc<Wallet>) -> Self {
        let chain_id = wallet.channel.network.chain_id;
        let (connection, hello) = connect(&Sockets, route, chain_id, LONG).await.unwrap();
        assert_eq!(hello.provider, ProviderId(provider_key().address()));
        Self { connection, wallet }
    }

    pub async fn send(&mut self, frame: ClientFrame) {
        self.connection.sender.send(&frame).await.unwrap();
    }

    pub async fn next(&mut self) -> Result<ProviderFrame, NetError> {
        self.connection.receiver.recv_within(LONG).await
    }

    /// An honest Open; the purse reserves its grant.
    pub fn open_frame(&self, job: &Job) -> Open {
        let terms = StreamTerms::new(job, PRICES);
        let grant = terms.grant_after(0);
        let ceiling = self.wallet.purse.lock().unwrap().open(job.request_hash(), grant).unwrap();
        let channel = &self.wallet.channel;
        Open { job: job.clone(), channel: channel.config, prices: PRICES, voucher: channel.voucher(ceiling), grant }
    }

    /// Sends an Open as it is and expects a refusal.
    pub async fn refused(&mut self, open: Open) -> Refused {
        self.send(ClientFrame::Open(Box::new(open))).await;
        match self.next().await.unwrap() {
            ProviderFrame::Refused(refused) => refused,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub async fn open(&mut self, job: &Job) -> Opened {
        let frame = ClientFrame::Open(Box::new(self.open_frame(job)));
        self.open_with(job, frame).await
    }

    pub async fn open_sealed(&mut self, job: &Job) -> Opened {
        let frame = ClientFrame::OpenSealed(Box::new(self.open_frame(job)));
        self.open_with(job, frame).await
    }

    async fn open_with(&mut self, job: &Job, frame: ClientFrame) -> Opened {
        self.send(frame).await;
        assert_eq!(self.next().await.unwrap(), ProviderFrame::Accepted);
        let (request, terms) = (job.request_hash(), StreamTerms::new(job, PRICES));
        Opened { job: job.clone(), request, terms, output: vec![], scores: vec![], checkpoints: vec![] }
    }

    pub async fn pay(&mut self, opened: &Opened, granted_total: Amount) {
        let wallet = Arc::clone(&self.wallet);
        let ceiling = wallet.purse.lock().unwrap().pay(opened.request, granted_total).unwrap();
        let voucher = wallet.channel.voucher(ceiling);
        self.send(ClientFrame::Pay(Pay { voucher, grant: granted_total })).await;
    }

    /// Takes one frame of a running job, checks and books its receipt; the end is returned.
    pub async fn step(&mut self, opened: &mut Opened) -> Option<Done> {
        match self.next().await.unwrap() {
            ProviderFrame::Tokens(tokens) => {
                assert!(!tokens.is_empty());
                opened.output.extend(tokens);
                None
            }
            ProviderFrame::Scored(tokens) => {
                assert!(!tokens.is_empty());
                opened.output.extend(tokens.iter().map(|(token, _)| token));
                opened.scores.extend(tokens.into_iter().map(|(_, score)| score));
                None
            }
            ProviderFrame::Checkpoint(receipt) => {
                opened.checkpoints.push(receipt.receipt.output_tokens);
                self.book(opened, &Done { receipt, finish: Finish::Open });
                None
            }
            ProviderFrame::Done(done) => {
                self.book(opened, &done);
                self.wallet.purse.lock().unwrap().close(opened.request).unwrap();
                Some(done)
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Everything that a payer checks in a receipt.
    pub fn book(&self, opened: &Opened, done: &Done) {
        let network = self.wallet.channel.network;
        let domain = receipt_domain(network.chain_id, network.registry);
        done.receipt.verify(&domain, ProviderId(provider_key().address())).unwrap();
        let expectation = ReceiptExpectation {
            channel_id: self.wallet.channel.id(),
            request_hash: opened.request,
            model_id: opened.job.model_id,
            terms: &opened.terms,
            output: &opened.output,
            finish: done.finish,
        };
        expectation.check(&done.receipt.receipt).unwrap();
        self.wallet.purse.lock().unwrap().on_receipt(&done.receipt.receipt).unwrap();
    }

    /// Runs a job to its end, paying at each checkpoint.
    pub async fn run(&mut self, job: &Job) -> Outcome {
        let opened = self.open(job).await;
        self.finish(opened).await
    }

    /// The rest of a job, paying at each checkpoint.
    pub async fn finish(&mut self, mut opened: Opened) -> Outcome {
        loop {
            let checkpoints = opened.checkpoints.len();
            if let Some(done) = self.step(&mut opened).await {
                return Outcome { output: opened.output, scores: opened.scores, checkpoints: opened.checkpoints, done };
            }
            if opened.checkpoints.len() > checkpoints {
                let grant = opened.terms.grant_after(opened.checkpoints[checkpoints]);
                self.pay(&opened, grant).await;
            }
        }
    }

    pub async fn offer(&mut self) -> SignedOffer {
        self.send(ClientFrame::OfferRequest).await;
        match self.next().await.unwrap() {
            ProviderFrame::Offer(offer) => offer,
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Shows nothing.
    pub async fn channel_report(&mut self) -> ChannelReport {
        let request = ChannelRequest { config: self.wallet.channel.config, voucher: None, latest: None };
        self.show(request).await
    }

    pub async fn show(&mut self, request: ChannelRequest) -> ChannelReport {
        self.send(ClientFrame::ChannelRequest(Box::new(request))).await;
        match self.next().await.unwrap() {
            ProviderFrame::Channel(report) => *report,
            other => panic!("unexpected {other:?}"),
        }
    }

    pub async fn receipt_report(&mut self, request: RequestHash) -> ReceiptReport {
        self.send(ClientFrame::ReceiptRequest(request)).await;
        match self.next().await.unwrap() {
            ProviderFrame::Receipt(report) => *report,
            other => panic!("unexpected {other:?}"),
        }
    }
}
